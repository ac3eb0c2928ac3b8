"""Rank responses of the SFT model yourself, in the terminal.

    python -m rlhf_mini.classroom.rank --labeler ana                 # ten prompts -> runs/default/my_rankings.jsonl
    python -m rlhf_mini.classroom.rank --labeler ana --prompts 30    # goes on where it stopped
    make rm RUN=ana ARGS="--rankings runs/default/my_rankings.jsonl"  # a reward model that has learned from you

Everybody who ranks with the same seed sees the same prompts and responses, the responses in another order; with another
seed they are others. What to inspect: would you rank the same responses the same way tomorrow?
"""

import fcntl
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

from annotated_types import Ge, Le
from pydantic import PositiveFloat, PositiveInt

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console, printable, run
from rlhf_mini.core.examples import Prompt, Ranking, Response, contents, read_prompts, read_rankings
from rlhf_mini.core.options import RunOptions, option, options, parse_options
from rlhf_mini.models.adapters import load_model

HELP = (
    'Numbers from the best to the worst: "2 1 4 3". Equally good ones with an equals sign: "2=1 4 3". '
    "s skips the prompt, u takes the last answer back, q or Ctrl-D leaves."
)


@options
class RankOptions(RunOptions):
    """Options of `python -m rlhf_mini.classroom.rank`."""

    labeler: str = option("me", "Your name, which the rankings keep.")
    prompts: PositiveInt = option(10, "How many prompts to rank, with those that you have ranked before.")
    responses: Annotated[int, Ge(2), Le(9)] = option(4, "K, responses to each prompt (InstructGPT: 4 to 9).")
    out: str = option("", "File to append the rankings to (default: RUNS_DIR/RUN/my_rankings.jsonl).")
    source: str = option("data/prompts/rm.jsonl", "JSONL of prompts to draw from.")
    temperature: PositiveFloat = option(1.0, "Sampling temperature: high, so that the responses differ.")
    max_new_tokens: PositiveInt = option(48, "Longest response.")

    def __post_init__(self) -> None:
        if not self.labeler.strip() or printable(self.labeler) != self.labeler or "\n" in self.labeler:
            raise UserError("--labeler needs a name, on one line and without control characters")

    @property
    def path(self) -> Path:
        return Path(self.out) if self.out else self.run_dir / "my_rankings.jsonl"


# --- an answer -------------------------------------------------------------------------------------------------------


def parse_order(text: str, number: int) -> list[int]:
    """The ranks of `number` responses from an order such as "2=1 4 3": 1 = best, equal = tied.

    >>> parse_order("2=1 4 3", 4)
    [1, 1, 4, 3]

    Raises:
        UserError: it does not name each response once.
    """
    spaced = re.sub(r"[\s,>]+", " ", re.sub(r"\s*=\s*", "=", text)).strip()
    if not re.fullmatch(r"[1-9](=?[1-9]| [1-9])*", spaced):
        raise UserError(f'{printable(text.strip())!r} is not an order: type numbers such as "2 1 4 3", or "2=1 4 3"')
    ranks: dict[int, int] = {}
    for index, (tied, digit) in enumerate(re.findall(r"(=?) ?([1-9])", spaced)):
        response = int(digit)
        if response > number:
            raise UserError(f"there is no response {response}: the numbers go from 1 to {number}")
        if response in ranks:
            raise UserError(f"response {response} is named twice: name each once")
        ranks[response] = list(ranks.values())[-1] if tied else index + 1
    if missing := [str(each) for each in range(1, number + 1) if each not in ranks]:
        raise UserError(f"the order lacks {' and '.join(missing)}: name all {number} responses")
    return [ranks[response] for response in range(1, number + 1)]


# --- the file --------------------------------------------------------------------------------------------------------


class RankingsFile:
    """Rankings, each on the disk before `append` returns. Open, it is locked against other sessions."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.rankings: list[Ranking] = read_rankings(path) if self._size() else []
        self.starts: list[int] = []  # of the lines that were appended in this session

    def append(self, ranking: Ranking) -> None:
        self.starts.append(self._size())
        self.rankings.append(ranking)
        self._write((json.dumps(ranking, ensure_ascii=False) + "\n").encode())

    def undo(self) -> bool:
        """Takes back the last ranking of this session. False if there is none."""
        if not self.starts:
            return False
        self.file.truncate(self.starts.pop())
        self.rankings.pop()
        self._write(b"")
        return True

    def of(self, labeler: str) -> list[str]:
        """The contents of the prompts that a labeler has ranked."""
        return [contents(one["prompt"]) for one in self.rankings if one.get("labeler") == labeler]

    def _size(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def _write(self, line: bytes) -> None:
        self.file.write(line)
        self.file.flush()
        os.fsync(self.file.fileno())


@contextmanager
def opened(path: Path) -> Iterator[RankingsFile]:
    """Opens or creates a file of rankings. UserError if it holds anything else, or another session writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"somebody else is ranking into {path}: choose another file with --out") from None
        except OSError:  # a file system without locks
            pass
        _end_the_last_line(file)
        try:
            yield RankingsFile(path, file)
        finally:
            if not file.seek(0, os.SEEK_END):
                path.unlink()


def _end_the_last_line(file: BinaryIO) -> None:
    """Ends a last line that an editor left without its end; removes it if a power cut left only half of it."""
    file.seek(0)
    whole, line_end, last = file.read().rpartition(b"\n")
    if not last:
        return
    try:
        json.loads(last)
        file.write(b"\n")
    except ValueError:
        file.truncate(len(whole + line_end))


# --- what is ranked --------------------------------------------------------------------------------------------------

Group = tuple[Prompt, list[Response]]


def drawn(settings: RankOptions, policy: Path | None = None) -> Iterator[Group]:
    """Prompts in an order drawn by the seed, each with K different responses. A prompt with too few is left out.

    With a `policy`, the folder of a PPO checkpoint, half of the samples are its, and the other half SFT's.
    """
    from transformers import AutoModelForCausalLM  # here, so that --help does not wait for torch

    from rlhf_mini.evaluation.answers import mixed
    from rlhf_mini.models.sampling import respond
    from rlhf_mini.models.text import encode_prompts, load_tokenizer
    from stages.rm.sources import distinct, most_different

    sft = load_checkpoint(settings.run_dir / "sft", "sft").path
    tokenizer = load_tokenizer(sft)
    sources = [sft] if policy is None else [sft, load_checkpoint(policy, "ppo").path]
    models = [load_model(AutoModelForCausalLM, source).eval() for source in sources]
    examples = read_prompts(settings.source)
    for number, example in enumerate(mixed(examples, lambda each: each.get("use_case"), len(examples), settings.seed)):
        prompts = encode_prompts(tokenizer, [example["prompt"]]) * (2 * settings.responses // len(models))
        samples = [
            one
            for model in models
            for one in respond(
                model, tokenizer, prompts, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature,
                seed=settings.seed + number,
            )
        ]  # fmt: skip
        finished = [one for one in samples if one.ended and one.text.strip()]
        group = most_different(distinct(finished), settings.responses)
        if len(group) == settings.responses:
            yield example, group


def shuffled(group: list[Response], labeler: str, example: Prompt) -> list[Response]:
    """In an order of the labeler's own, always the same for the same prompt."""
    return random.Random(f"{labeler}\n{contents(example['prompt'])}").sample(group, len(group))


def as_ranking(example: Prompt, group: list[Response], ranks: list[int], labeler: str) -> Ranking:
    return {
        **example,
        "responses": [one.text for one in group],
        "ended": [one.ended for one in group],
        "ranks": ranks,
        "labeler": labeler,
    }


# --- the session -----------------------------------------------------------------------------------------------------


def session(
    groups: Iterator[Group], file: RankingsFile, labeler: str, goal: int, ask: Callable[[str], str] = input
) -> int:
    """Asks for rankings until `goal` prompts are ranked or the labeler leaves. Returns how many are ranked in all."""
    ranked = set(file.of(labeler))
    waiting: list[Group] = []  # those that were taken back
    done: list[Group] = []
    while len(ranked) < goal:
        example, group = waiting.pop() if waiting else next(groups, (None, None))
        if example is None or group is None:
            console.print("There are no more prompts.")
            break
        text = contents(example["prompt"])
        if text in ranked:
            continue
        group = shuffled(group, labeler, example)
        show(example, group, f"{len(ranked) + 1} of {goal}")
        answer = answered(len(group), ask)
        if answer == "quit":
            break
        if answer == "undo":
            waiting.append((example, group))
            if file.undo():
                waiting.append(done.pop())
                ranked.remove(contents(waiting[-1][0]["prompt"]))
                console.print("Taken back.")
            else:
                console.print("There is nothing to take back in this session.")
        elif isinstance(answer, list):
            file.append(as_ranking(example, group, answer, labeler))
            done.append((example, group))
            ranked.add(text)
    return len(ranked)


def show(example: Prompt, group: list[Response], title: str) -> None:
    """A prompt with its numbered responses. What a model wrote cannot command the terminal."""
    console.print(f"\n--- {title} ---", style="dim")
    for message in example["prompt"]:
        console.print(f"{message['role']}: {printable(message['content'])}", style="bold")
    for number, response in enumerate(group, start=1):
        console.print(f"  {number}  {printable(response.text)}")


def answered(number: int, ask: Callable[[str], str]) -> list[int] | str:
    """Ranks, or "skip", "undo" or "quit". Asks again until it is one of them."""
    while True:
        try:
            line = ask("order> ").strip()
        except EOFError:
            return "quit"
        except UnicodeDecodeError:
            line = "?"
        words = {"s": "skip", "u": "undo", "q": "quit"}
        command = words.get(line.lower(), line.lower())
        if command in words.values():
            return command
        try:
            return parse_order(line, number)
        except UserError as fault:
            console.print(HELP if line in ("?", "help", "") else f"{fault}.")


def rank(settings: RankOptions, ask: Callable[[str], str] = input) -> None:
    """A session in a terminal or, through Jupyter's own `input`, in a notebook."""
    groups = drawn(settings)
    with opened(settings.path) as file:
        console.print(f"Which response would you rather get? {HELP}")
        try:
            ranked = session(groups, file, settings.labeler, settings.prompts, ask)
        except KeyboardInterrupt:
            kept = len(file.of(settings.labeler))
            raise KeyboardInterrupt(f"your rankings are in {settings.path}: {kept}") from None
    console.print(f"{settings.path} has {ranked} rankings by {settings.labeler}.", soft_wrap=True)
    if ranked:
        console.print(
            f'`make rm RUN=NAME ARGS="--rankings {settings.path}"` trains a reward model on them, and lesson 5 asks '
            "whose they resemble.",
            soft_wrap=True,
        )


def main() -> None:
    rank(
        parse_options(
            RankOptions,
            prog="python -m rlhf_mini.classroom.rank",
            description="Shows a prompt with several responses of the SFT model, in random order, and takes your "
            'ranking: "2 1 4 3" from the best to the worst, "2=1 4 3" with a tie. Each answer is on the disk before '
            "the next prompt; the same command goes on where you stopped. The file can train a reward model.",
        )
    )


if __name__ == "__main__":
    run(main)
