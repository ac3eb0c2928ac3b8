"""A chat in the terminal with base, SFT and PPO, one of them or side by side.

    python -m rlhf_mini.chat --run default                         # chat with PPO; /help lists the commands
    python -m rlhf_mini.chat --side-by-side base,sft,ppo           # the same message to all three
    printf 'Name three fruits.\\n/why\\n' | python -m rlhf_mini.chat   # scripted: a line is a message or a command

SFT and PPO read the conversation through the chat template, the base as plain text. What to inspect: how the answer
changes from stage to stage, which of several the reward model picks (/best-of 16), and which tokens PPO made more
likely (/why). The same lines to the same seed get the same answers.
"""

import os
import sys
from pathlib import Path

from rlhf_mini.chat.options import ChatOptions
from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import console, run
from rlhf_mini.core.inputs import note_changes
from rlhf_mini.core.options import parse_options
from rlhf_mini.evaluation.runs import foreign_base


def main() -> None:
    options = parse_options(
        ChatOptions,
        prog="python -m rlhf_mini.chat",
        description="A chat in the terminal with base, SFT or PPO, or with several of them side by side. "
        "/help in the chat lists its commands: best-of-n, the token microscope, saving and more.",
    )
    for name in options.stages:
        load_checkpoint(options.checkpoint(name), name)
    note_changes([options.checkpoint(name) for name in options.stages if name != "base"])
    # One token at a time is too little work to share, and beside other programs two threads can take 100 times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with console.status("loading"):  # here, so that --help and a missing checkpoint do not wait for torch
        from rlhf_mini.chat.display import say
        from rlhf_mini.chat.keyboard import history
        from rlhf_mini.chat.shell import BASE_NOTE, Shell

    shell = Shell(options)
    for name in options.stages:
        shell.chat.load(name)
    if not sys.stdin.isatty():
        shell.cmdloop()
        return
    console.print(f"You are chatting with {', '.join(options.stages)} of {options.run_dir}. /help lists the commands.")
    if "base" in options.stages:
        say(BASE_NOTE)
    if foreign_base(options.run_dir) is None:
        say('The models know a small world: try "Name three fruits." or "What is the capital of Japan?"')
        say("They were trained on conversations of one or two turns: if the answers become odd, /reset.")
    with history(Path(options.runs_dir) / ".chat_history"):
        shell.cmdloop()


if __name__ == "__main__":
    run(main)
