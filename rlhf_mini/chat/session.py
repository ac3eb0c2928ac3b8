"""A chat in the terminal with what the stages made: base, SFT and PPO, one of them or side by side.

    python -m rlhf_mini.chat --run default                         # talk with PPO; /help lists the commands
    python -m rlhf_mini.chat --side-by-side base,sft,ppo           # the same message to all three
    printf 'Name three fruits.\\n/why\\n' | python -m rlhf_mini.chat   # scripted: a line is a message or a command

SFT and PPO get the conversation through the chat template, the base as plain text. What to inspect: what changes from
stage to stage, what the reward model picks (/best-of 16), and which tokens PPO made likelier (/why). The same lines to
the same seed give the same answers.
"""

import copy
import math
import os
import random
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console, printable
from rlhf_mini.core.examples import Prompt
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.options import option, parse_options

# These import torch and transformers, for which --help and what is missing should not wait.
if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from rlhf_mini.core.examples import Messages, Response
    from rlhf_mini.evaluation.measures import Stage
    from rlhf_mini.evaluation.microscope import Microscope, View

NAMES = ("base", "sft", "ppo")
COMMANDS = {  # what follows the name, and what it does
    "help": ("", "lists the commands"),
    "stage": ("NAME", "lets base, sft or ppo answer and keeps the conversation; base,sft,ppo: side by side"),
    "best-of": ("N", "samples N answers to each message, of which the reward model picks one; /best-of 1 ends it"),
    "why": ("[STAGE] [MEASURE]", "shows what PPO saw in each token of the last answer; colours by MEASURE"),
    "history": ("", "prints the conversation so far"),
    "reset": ("", "forgets the conversation and begins a new one"),
    "save": ("[FILE]", "writes the conversation as JSONL, one demonstration for each answer"),
    "quit": ("", "leaves, as Ctrl-D does; Ctrl-C only ends an answer"),
}
BASE_NOTE = "The base has never seen a chat: it gets your words as plain text, and goes on writing."
NARROW = 60  # columns below which stages answer one below the other, and /why shows one measure
MOST = 64  # samples of /best-of: more take longer than one likes to wait
HISTORY = 500  # lines that the up-arrow finds again
# Weak to strong. Black is readable on each, and nearly everybody tells orange from blue; where a terminal has only 16
# colours, they become yellow or red, and cyan.
BELOW, ABOVE = ("#ffd9a0", "#ffb347", "#ff8c1a"), ("#99ddff", "#4db8ff", "#00aaff")


@dataclass
class ChatOptions:
    """Options of `python -m rlhf_mini.chat`."""

    run: str = option("default", "Name of the run; its checkpoints are in RUNS_DIR/RUN.")
    runs_dir: str = option("runs", "Folder of all runs.")
    base: str = option("data/base", "The pretrained checkpoint that SFT started from.")

    stage: str = option("ppo", "Who answers: base, sft or ppo. /stage changes it in the chat.")
    side_by_side: str = option("", "Several stages that answer side by side, such as base,sft,ppo.")

    max_new_tokens: int = option(48, "Tokens after which an answer is cut.")
    temperature: float = option(0.7, "Temperature of the answers; 0 takes the likeliest token each time.")
    seed: int = option(0, "Seed of the answers: the same lines to the same seed give the same answers.")

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be at least 1, not {self.max_new_tokens}")
        for name in ("seed", "temperature"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} must not be negative, but is {getattr(self, name)}")
        stage_names(self.stage)
        stage_names(self.side_by_side or self.stage)

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run

    def checkpoint(self, name: str) -> Path:
        return Path(self.base) if name == "base" else self.run_dir / name


@dataclass
class Exchange:
    """A message and the answer to it."""

    number: int
    """Of the answer in this session, from 1; with the seed it decides the draws."""
    stage: str
    prompt: "Messages"
    """All that was before the answer, without what no longer fitted into the context."""
    response: "Response"
    scores: list[float]
    """The reward model's of all samples, if it picked this one."""

    @property
    def messages(self) -> "Messages":
        return [self.prompt[-1], {"role": "assistant", "content": self.response.text}]

    def record(self) -> Prompt:
        """A demonstration (records.py) that says how its completion was sampled."""
        chosen = {"best_of": len(self.scores), "rm_score": max(self.scores)} if self.scores else {}
        about = {"stage": self.stage, "number": self.number, "ended": self.response.ended, **chosen}
        return {"prompt": self.prompt, "completion": self.messages[1:], **about}


@dataclass
class Conversation:
    exchanges: list[Exchange] = field(default_factory=list)
    forgotten: int = 0
    """How many of them, the oldest, the model no longer sees."""

    @property
    def remembered(self) -> list[Exchange]:
        return self.exchanges[self.forgotten :]


# --- the parts that need no model ------------------------------------------------------------------------------------


def stage_names(text: str) -> list[str]:
    """The stages in a list such as "base,sft". UserError if it is none."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in NAMES:
            raise UserError(f"there is no stage {printable(name)!r} to talk with: name base, sft or ppo")
    if len(set(names)) < len(names):
        raise UserError(f"{text} names a stage twice: name each once")
    return names


def parse_command(line: str) -> tuple[str, str]:
    """The name of a command and what follows it: "/best-of 4" -> ("best-of", "4"). UserError if there is none such."""
    name, _, argument = line.removeprefix("/").partition(" ")
    if name not in COMMANDS:
        raise UserError(f"there is no command /{printable(name)}: /help lists all there are")
    if argument.strip() and not COMMANDS[name][0]:
        raise UserError(f"/{name} stands alone: leave out what follows it")
    return name, argument.strip()


def prompt_of(exchanges: Sequence[Exchange], message: str) -> "Messages":
    """The exchanges and the new message as a prompt."""
    return [*(m for exchange in exchanges for m in exchange.messages), {"role": "user", "content": message}]


def must_go(exchanges: Sequence[Exchange], message: str, length: Callable[["Messages"], int], room: int | None) -> int:
    """How many of the oldest exchanges must go for the others and the message to have at most `room` tokens.

    UserError if even the message alone has more.
    """
    for gone in range(len(exchanges) + 1):
        tokens = length(prompt_of(exchanges[gone:], message))
        if room is None or tokens <= room:
            return gone
    raise UserError(
        f"this message alone has {tokens} tokens, and the context has room for {room} beside the answer: it was not "
        "added; send a shorter one, or start with a lower --max_new_tokens"
    )


def token_count(tokenizer: "PreTrainedTokenizerBase", prompt: "Messages") -> int:
    from rlhf_mini.models.sampling import encode_prompts

    return len(encode_prompts(tokenizer, [prompt])[0])


def so_far(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """The text of an answer that is still growing. Bytes at its end that are only part of a character wait."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ")
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


@contextmanager
def ctrl_c() -> Iterator[Event]:
    """Within the block Ctrl-C sets the event instead of raising, so that an answer ends between two tokens.

    What is typed meanwhile is not shown in the middle of the answer; it waits for the next line.
    """
    pressed = Event()
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    keys = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    if keys:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, [*keys[:3], keys[3] & ~termios.ECHO, *keys[4:]])
    try:
        yield pressed
    finally:
        if keys:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, keys)
        signal.signal(signal.SIGINT, before)


# --- the chat --------------------------------------------------------------------------------------------------------


class Chat:
    """What is loaded, who answers, and what was said."""

    def __init__(self, options: ChatOptions) -> None:
        """UserError if a checkpoint that is to answer is missing or broken."""
        self.options = options
        names = stage_names(options.side_by_side or options.stage)
        for name in names:
            load_checkpoint(options.checkpoint(name), name)
        self.conversations = {name: Conversation() for name in names}
        self.best_of = 1
        self.number = 0  # answers so far
        self.loaded: dict[str, Stage] = {}
        self.microscope: Microscope | None = None

    def load(self, name: str) -> "Stage":
        """A stage, or the reward model "rm". UserError if its checkpoint is missing or broken."""
        if name not in self.loaded:
            path = self.options.checkpoint(name)
            load_checkpoint(path, name)
            with console.status(f"loading {name}"):
                from rlhf_mini.evaluation.measures import load_stage
                from rlhf_mini.models.sampling import context_length

                self.loaded[name] = load_stage(path, name)
            context = context_length(self.loaded[name].model)
            if context is not None and context < self.options.max_new_tokens + 16:
                most = context - 16
                raise UserError(f"--max_new_tokens must be at most {most}: the context of {name} is {context} tokens")
        return self.loaded[name]

    def obey(self, line: str) -> None:
        """Answers a message or does what a command says. UserError for what cannot be done."""
        if line.startswith("/"):
            name, argument = parse_command(line)
            getattr(self, "do_" + name.replace("-", "_"))(*[argument] * bool(COMMANDS[name][0]))
        else:
            self.answer(line)

    # --- answering ---

    def answer(self, message: str) -> None:
        """Prints what each stage says to the message, while it says it."""
        prompts = self.prompts(message)
        if console.is_terminal and console.width >= NARROW:
            self.draw_answers(prompts)
        else:
            for name, prompt in prompts.items():
                self.draw_answers({name: prompt})

    def draw_answers(self, prompts: dict[str, "Messages"]) -> None:
        """The answer of one stage, or those of several in columns."""
        answers = dict.fromkeys(prompts, Text())
        with drawing() as draw:

            def show(name: str, text: Text) -> None:
                answers[name] = text
                draw(columns(answers) if len(answers) > 1 else labelled(name, text))

            for name, prompt in prompts.items():
                self.respond(name, prompt, partial(show, name))

    def prompts(self, message: str) -> dict[str, "Messages"]:
        """What each stage is to answer: as much of its conversation as fits into its context, and the message.

        UserError if even the message alone does not fit; no conversation has changed then.
        """
        from rlhf_mini.models.sampling import context_length

        gone = {}
        for name, conversation in self.conversations.items():
            stage = self.load(name)
            if special := [token for token in stage.tokenizer.all_special_tokens if token in message]:
                raise UserError(f"{special[0]} is a sign between the turns, which no message can hold: leave it out")
            context = context_length(stage.model)
            room = None if context is None else context - self.options.max_new_tokens
            # Through the chat template for the base too, since the reward model and the microscope read it so.
            lengths = partial(token_count, stage.tokenizer)
            gone[name] = must_go(conversation.remembered, message, lengths, room)
        for name, number in gone.items():
            self.conversations[name].forgotten += number
            if number:
                turns = "turn no longer fits" if number == 1 else f"{number} turns no longer fit"
                say(f"({name}: the oldest {turns} into the context and will not be seen)")
        return {name: prompt_of(c.remembered, message) for name, c in self.conversations.items()}

    def respond(self, name: str, prompt: "Messages", show: Callable[[Text], None]) -> None:
        """Samples a stage's answer, or the reward model's choice of several, and adds it to the conversation."""
        import torch

        from rlhf_mini.models.sampling import Rollout, sample, to_responses
        from rlhf_mini.models.scoring import right_pad, score_texts

        stage = self.load(name)
        eos, pad = stage.tokenizer.eos_token_id, stage.tokenizer.pad_token_id
        said: list[list[int]] = [[] for _ in range(self.best_of)]

        def on_tokens(rows: "Tensor", tokens: "Tensor") -> None:
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                said[row].append(token)
            waiting = Text(f"({len(said)} samples, {sum(map(len, said))} tokens)", style="dim")
            show(waiting if len(said) > 1 else Text(printable(so_far(stage.tokenizer, said[0]))))
            if pressed.is_set():
                raise KeyboardInterrupt

        self.number += 1
        seed = random.Random(f"{self.options.seed} {self.number}").getrandbits(63)
        with ctrl_c() as pressed:
            with suppress(KeyboardInterrupt):
                sample(
                    stage.model,
                    [self.encode(name, prompt)] * len(said),
                    max_new_tokens=self.options.max_new_tokens,
                    temperature=self.options.temperature,
                    eos_token_id=eos,
                    pad_token_id=pad,
                    generator=torch.Generator().manual_seed(seed),
                    on_tokens=on_tokens,
                )
            ids, mask = right_pad(said, pad)  # (N, R) each: whole responses, or as far as Ctrl-C let them
            responses = to_responses(stage.tokenizer, Rollout(ids, mask.bool(), torch.zeros(ids.shape)))
            scores = []
            if len(said) > 1:
                judge = self.load("rm")
                scores = score_texts(judge.model, judge.tokenizer, [prompt] * len(said), responses)
            best = scores.index(max(scores)) if scores else 0
            exchange = Exchange(self.number, name, prompt, responses[best], scores)
            show(answer_text(exchange))
            if exchange.response.text.strip():
                self.conversations[name].exchanges.append(exchange)

    def encode(self, name: str, prompt: "Messages") -> list[int]:
        """The prompt as the stage is to read it."""
        from rlhf_mini.evaluation.measures import BARE_TEMPLATE
        from rlhf_mini.models.sampling import encode_prompts

        tokenizer = self.load(name).tokenizer
        if name == "base":
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = BARE_TEMPLATE
        return encode_prompts(tokenizer, [prompt])[0]

    # --- commands ---

    def do_help(self) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for name, (argument, meaning) in COMMANDS.items():
            table.add_row(f"/{name} {argument}", meaning)
        console.print(table)
        console.print("Anything else is a message. The up-arrow brings back earlier lines.")

    def do_stage(self, argument: str) -> None:
        names = stage_names(argument) if argument else list(self.conversations)
        for name in names:
            self.load(name)
        former = self.conversations
        first = next(iter(former.values()))
        # A stage that has a conversation of its own goes on with it, another with what was said so far.
        goes_on = {name: former.get(name, first) for name in names}
        self.conversations = {name: Conversation(list(c.exchanges), c.forgotten) for name, c in goes_on.items()}
        say(f"{', '.join(names)} will answer")
        if "base" in names:
            say(BASE_NOTE)

    def do_best_of(self, argument: str) -> None:
        number = int(argument) if argument.isdecimal() else 0
        if not 1 <= number <= MOST:
            raise UserError(f"/best-of needs a number from 1 to {MOST}, such as /best-of 16")
        if number > 1:
            self.load("rm")
        self.best_of = number
        note = f"the reward model picks the best of {number} samples" if number > 1 else "answers are sampled once"
        say(note)

    def do_why(self, argument: str) -> None:
        with console.status("loading what PPO worked with"):
            from rlhf_mini.evaluation.microscope import MEASURES, Microscope

            self.microscope = self.microscope or Microscope(self.options.run_dir)
        measure, name = "shift", list(self.conversations)[-1]
        for word in argument.split():
            if word in MEASURES:
                measure = word
            elif word in self.conversations:
                name = word
            else:
                raise UserError(
                    f"/why knows no {printable(word)!r}: name one of {', '.join(MEASURES)}, or who answered"
                )
        if not self.conversations[name].exchanges:
            raise UserError("there is no answer to look at yet: send a message first")
        exchange = self.conversations[name].exchanges[-1]
        show_view(self.microscope.look(exchange.prompt, exchange.response), exchange, measure, MEASURES)

    def do_history(self) -> None:
        for name, conversation in self.conversations.items():
            if len(self.conversations) > 1:
                say(f"--- {name} ---")
            for index, exchange in enumerate(conversation.exchanges):
                if index == conversation.forgotten > 0:
                    say("(what is above no longer fits into the context)")
                console.print(labelled("you", Text(printable(exchange.prompt[-1]["content"]))))
                console.print(labelled(exchange.stage, answer_text(exchange)))
        if not any(conversation.exchanges for conversation in self.conversations.values()):
            say("nothing was said yet")

    def do_reset(self) -> None:
        self.conversations = {name: Conversation() for name in self.conversations}
        say("a new conversation begins")

    def do_save(self, argument: str) -> None:
        # By number: stages that began with the same conversation share its exchanges.
        exchanges = {e.number: e for conversation in self.conversations.values() for e in conversation.exchanges}
        if not exchanges:
            raise UserError("there is nothing to save yet: send a message first")
        if not argument.isprintable():
            raise UserError("/save needs a file name without control characters")
        default = self.options.run_dir / time.strftime("chat-%Y%m%d-%H%M%S.jsonl")
        path = Path(os.path.expanduser(argument)) if argument else default
        if path.exists():
            raise UserError(f"{path} exists: give /save another name")
        about = {"run": self.options.run, "seed": self.options.seed, "temperature": self.options.temperature}
        write_jsonl(path, (exchanges[number].record() | about for number in sorted(exchanges)))
        console.print(f"{path} written (answers: {len(exchanges)})", style="dim", soft_wrap=True)


# --- drawing ---------------------------------------------------------------------------------------------------------


@contextmanager
def drawing() -> Iterator[Callable[[RenderableType], None]]:
    """Gives what draws an answer over its earlier self. Where there is no terminal, the last is printed at the end."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as screen:
            yield lambda shown: screen.update(shown, refresh=True)
        return
    last: list[RenderableType] = [""]
    yield lambda shown: last.__setitem__(0, shown)
    console.print(last[0], soft_wrap=True)


def say(text: str, style: str = "dim") -> None:
    """A remark of the chat itself: whole words on a terminal, a whole line for a pipe."""
    console.print(text, style=style, soft_wrap=not console.is_terminal)


def labelled(name: str, text: Text) -> Text:
    return Text.assemble((f"{name}> ", "bold"), text)


def columns(answers: dict[str, Text]) -> Table:
    table = Table(*answers, expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*answers.values())
    return table


def answer_text(exchange: Exchange) -> Text:
    """An answer with what there is to say of it."""
    response, scores = exchange.response, sorted(exchange.scores)
    text = Text(printable(response.text))
    if not response.text.strip():
        text.append("(not a word, so your message is not kept either)", style="dim")
    elif not response.ended:
        text.append(" (cut)", style="dim")
    if scores:
        *others, best = scores
        mean = sum(others) / len(others)
        note = f"\nRM {best:+.2f}, best of {len(scores)}; the others {others[0]:+.2f} to {others[-1]:+.2f}, "
        text.append(f"{note}mean {mean:+.2f}", style="dim")
    return text


def show_view(view: "View", exchange: Exchange, measure: str, measures: dict[str, tuple[str, str]]) -> None:
    """A response under the microscope, coloured by one measure; then each token's numbers, and how to read them."""
    most = max(abs(getattr(token, measure)) for token in view.tokens)
    styles = [colour(getattr(token, measure), most) for token in view.tokens]
    words = zip((printable(token.text) for token in view.tokens), styles, strict=True)
    console.print(Text.assemble((f"{exchange.stage}>", "bold"), *words))
    above, below = ("bold: above 0", colour(most, most)), ("underlined: below 0", colour(-most, most))
    console.print(Text.assemble(f"{measures[measure][0]} (", above, ", ", below, f", strongest at {most:.2f})"))

    names = list(measures) if console.width >= NARROW else [measure]
    table = Table("token", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in names:
        table.add_column("shift" if name == "shift" else measures[name][0], justify="right", no_wrap=True)
    table.add_column("SFT says")
    for token, style in zip(view.tokens, styles, strict=True):
        cells = [Text(f"{getattr(token, name):+z.2f}", style=style if name == measure else "") for name in names]
        instead = "the same" if token.instead == token.text else visible(token.instead)
        table.add_row(Text(visible(token.text)), *cells, Text(f"{instead} {math.exp(token.instead_logprob):.0%}"))
    console.print(table)
    for title, reading in [measures[name] for name in names]:
        say(f"{title}: {reading}")
    say("SFT says: the token that SFT holds likeliest here, and how likely.")


def colour(value: float, most: float) -> str:
    """A token's style: blue and bold above 0, orange and underlined below, the stronger the nearer to `most`."""
    strength = abs(value) / most if most else 0.0
    if strength < 0.1:
        return ""
    shade = min(int(3 * strength), 2)
    return f"bold black on {ABOVE[shade]}" if value > 0 else f"underline black on {BELOW[shade]}"


def visible(token: str) -> str:
    """A token with its spaces and line ends to be seen."""
    return printable(token.replace(" ", "·").replace("\n", "↵"))


# --- the person ------------------------------------------------------------------------------------------------------


@contextmanager
def recalled(path: Path) -> Iterator[None]:
    """Within the block the up-arrow brings back earlier lines, also those of earlier sessions, which `path` keeps."""
    try:
        import readline
    except ImportError:  # Python was built without it
        yield
        return
    readline.set_history_length(HISTORY)
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        partial = path.with_name(path.name + ".partial")
        with suppress(OSError):
            readline.write_history_file(partial)
            os.replace(partial, path)


def lines() -> Iterator[str]:
    """What the person types, line by line, until Ctrl-D; or what comes through a pipe, until its end."""
    while True:
        try:
            line = input("you> " if sys.stdin.isatty() else "").strip()
            line.encode()
        except EOFError:
            if sys.stdin.isatty():
                console.print()  # Ctrl-D leaves the cursor behind the prompt
            return
        except UnicodeEncodeError:
            say("error: that line is not UTF-8 text, and was not sent", style="")
            continue
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            say("\n(Ctrl-D or /quit leaves)")
            continue
        if line:
            yield line


def talk(chat: Chat) -> None:
    """Does what each line says, until there are no more."""
    for line in lines():
        if line == "/quit":
            return
        try:
            chat.obey(line)
        except UserError as fault:
            say(f"error: {fault}", style="")
        except OSError as fault:
            where = f"{fault.filename}: " if fault.filename else ""
            say(f"error: {where}{fault.strerror}; nothing was written, so try /save with another name", style="")
        except KeyboardInterrupt:
            say("(stopped; Ctrl-D or /quit leaves)")


def main() -> None:
    options = parse_options(
        ChatOptions,
        prog="python -m rlhf_mini.chat",
        description="A chat in the terminal with base, SFT or PPO, or with several of them side by side; "
        "/help in the chat lists what else there is: the best of N samples, the token microscope, saving.",
    )
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    # One token at a time is too little to share. Beside other programs, two threads take a hundred times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chat = Chat(options)
    for name in chat.conversations:
        chat.load(name)
    if not sys.stdin.isatty():
        talk(chat)
        return
    console.print(f"You talk with {', '.join(chat.conversations)} of {options.run_dir}. /help lists the commands.")
    if "base" in chat.conversations:
        say(BASE_NOTE)
    say('It knows a small world: try "Name three fruits." or "What is the capital of Japan?"')
    say("It learned from conversations of one or two turns: when its answers turn odd, /reset.")
    with recalled(Path(options.runs_dir) / ".chat_history"):
        talk(chat)
