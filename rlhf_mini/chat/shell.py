"""The chat's commands: a line that starts with a slash is a command, anything else is a message to the stages."""

import cmd
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_mini.chat.answers import Chat
from rlhf_mini.chat.conversation import Conversation
from rlhf_mini.chat.display import HEADINGS, answer_text, drawing, is_narrow, labelled, say, show_view
from rlhf_mini.chat.keyboard import read_lines
from rlhf_mini.chat.options import ChatOptions, parse_stages
from rlhf_mini.core.console import UserError, console, printable
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.evaluation.microscope import MEASURES, Microscope

COMMANDS = {  # name: its argument, and what it does
    "help": ("", "lists the commands"),
    "stage": ("NAME", "switches to base, sft or ppo and keeps the conversation; base,sft,ppo answer side by side"),
    "best-of": (
        "N",
        "samples N answers to each message and keeps the one that the reward model scores highest; /best-of 1 stops it",
    ),
    "why": ("[STAGE] [MEASURE]", "shows PPO's numbers for each token of the last answer, coloured by MEASURE"),
    "history": ("", "prints the conversation so far"),
    "reset": ("", "starts a new conversation"),
    "save": ("[FILE]", "writes the conversation as JSONL, one demonstration per answer"),
    "quit": ("", "leaves the chat, as Ctrl-D does; Ctrl-C only ends an answer"),
}
MAX_BEST_OF = 64  # more samples take longer than one likes to wait
BASE_NOTE = "The base model was never trained on chats: it gets your words as plain text and continues them."


class Shell(cmd.Cmd):
    """Reads lines and does what they say: Cmd calls do_best_of("4") for "/best-of 4", and default() for a message."""

    prompt = "you> "

    def __init__(self, options: ChatOptions) -> None:
        super().__init__()
        self.options = options
        self.chat = Chat(options)
        self.microscope: Microscope | None = None

    def cmdloop(self, intro: Any = None) -> None:
        """Reads and obeys lines until the last, reporting errors. Cmd's own cannot tell Ctrl-D from a message "EOF"."""
        for line in read_lines(self.prompt):
            try:
                if self.onecmd(line):
                    return
            except UserError as fault:
                say(f"error: {fault}", style="")
            except OSError as fault:
                where = f"{fault.filename}: " if fault.filename else ""
                say(f"error: {where}{fault.strerror}; nothing was written: give /save another name", style="")
            except KeyboardInterrupt:
                say("(stopped; Ctrl-D or /quit leaves)")

    def parseline(self, line: str) -> tuple[str | None, str | None, str]:
        """The method do_... to call, its argument, and the line. Cmd's own gives "?" and "!" a meaning."""
        if not line.startswith("/"):
            return None, None, line
        name, argument = parse_command(line)
        return name.replace("-", "_"), argument, line

    def emptyline(self) -> bool:
        """Does nothing. Cmd's own repeats the last line."""
        return False

    def default(self, line: str) -> None:
        """Answers a message: prints what each stage says while it is being sampled."""
        prompts = self.chat.prompts(line)
        side_by_side = console.is_terminal and not is_narrow()
        for names in [list(prompts)] if side_by_side else [[name] for name in prompts]:
            with drawing(names) as draw:
                for name in names:
                    self.chat.respond(name, prompts[name], partial(draw, name))

    # --- commands ---

    def do_help(self, _: str) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for name, (argument, meaning) in COMMANDS.items():
            table.add_row(f"/{name} {argument}", meaning)
        console.print(table)
        console.print("Anything else is a message. The up-arrow brings back earlier lines.")

    def do_stage(self, argument: str) -> None:
        conversations = self.chat.conversations
        names = parse_stages(argument) if argument else list(conversations)
        for name in names:
            self.chat.load(name)
        # A stage that already takes part keeps its own conversation; a new one continues the first stage's.
        first = next(iter(conversations.values()))
        self.chat.conversations = {name: conversations.get(name, first).copy() for name in names}
        say(f"{', '.join(names)} will answer")
        if "base" in names:
            say(BASE_NOTE)

    def do_best_of(self, argument: str) -> None:
        number = int(argument) if argument.isdecimal() else 0
        if not 1 <= number <= MAX_BEST_OF:
            raise UserError(f"/best-of needs a number from 1 to {MAX_BEST_OF}, such as /best-of 16")
        if number > 1:
            self.chat.load("rm")
        self.chat.best_of = number
        say(f"the reward model picks the best of {number} samples" if number > 1 else "answers are sampled once")

    def do_why(self, argument: str) -> None:
        conversations = self.chat.conversations
        measures = {heading.lower(): key for key, heading in HEADINGS.items()}
        measure, name = "shift", list(conversations)[-1]
        for word in argument.split():
            if (key := measures.get(word, word)) in MEASURES:
                measure = key
            elif word in conversations:
                name = word
            else:
                choices = ", ".join([*measures, *conversations])
                raise UserError(f"/why does not know {printable(word)!r}: name one of {choices}")
        if not conversations[name].exchanges:
            raise UserError("there is no answer to look at yet: send a message first")
        with console.status("loading PPO's models"):
            self.microscope = self.microscope or Microscope(self.options.run_dir, self.options.reward)
        exchange = conversations[name].exchanges[-1]
        show_view(self.microscope.look(exchange.prompt, exchange.response), exchange, measure)
        if self.microscope.note:
            say(self.microscope.note)

    def do_history(self, _: str) -> None:
        conversations = self.chat.conversations
        for name, conversation in conversations.items():
            if len(conversations) > 1:
                say(f"--- {name} ---")
            for index, exchange in enumerate(conversation.exchanges):
                if index == conversation.dropped > 0:
                    say("(what is above no longer fits into the context)")
                console.print(labelled("you", Text(printable(exchange.message))))
                console.print(labelled(exchange.stage, answer_text(exchange)))
        if not any(conversation.exchanges for conversation in conversations.values()):
            say("nothing has been said yet")

    def do_reset(self, _: str) -> None:
        self.chat.conversations = {name: Conversation() for name in self.chat.conversations}
        say("a new conversation starts")

    def do_save(self, argument: str) -> None:
        # By number, because stages that continue the same conversation share its exchanges.
        exchanges = {e.number: e for c in self.chat.conversations.values() for e in c.exchanges}
        if not exchanges:
            raise UserError("there is nothing to save yet: send a message first")
        if printable(argument) != argument:
            raise UserError("/save needs a file name without control characters")
        default = self.options.run_dir / time.strftime("chat-%Y%m%d-%H%M%S.jsonl")
        path = Path(os.path.expanduser(argument)) if argument else default
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.touch(exist_ok=False)  # now the name is taken, should another chat save in this very second
        except FileExistsError:
            raise UserError(f"{path} exists: give /save another name") from None
        about = {"run": self.options.run, "seed": self.options.seed, "temperature": self.options.temperature}
        write_jsonl(path, (exchanges[number].demonstration() | about for number in sorted(exchanges)))
        console.print(f"{path} written (answers: {len(exchanges)})", style="dim", soft_wrap=True)

    def do_quit(self, _: str) -> bool:
        return True


def parse_command(line: str) -> tuple[str, str]:
    """A command's name and its argument: "/best-of 4" -> ("best-of", "4"). UserError if there is no such command."""
    name, _, argument = line.removeprefix("/").partition(" ")
    if name not in COMMANDS:
        raise UserError(f"there is no command /{printable(name)}: /help lists the commands")
    if argument.strip() and not COMMANDS[name][0]:
        raise UserError(f"/{name} takes no argument: leave out what follows it")
    return name, argument.strip()
