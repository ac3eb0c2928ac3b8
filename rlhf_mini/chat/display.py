"""What the chat draws: answers while they grow, and a response under the token microscope."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rlhf_mini.chat.conversation import Exchange
from rlhf_mini.core.console import console, printable
from rlhf_mini.evaluation.microscope import MEASURES, View

HEADINGS = {key: "log-ratio" if key == "shift" else title for key, (title, _) in MEASURES.items()}  # of a column
NARROW = 60  # columns below which stages answer one below the other, and the microscope shows one measure

# From weak to strong. Black is readable on each, and most people with colour blindness can tell orange from blue. A
# terminal of 16 colours shows yellow or red, and cyan.
BELOW, ABOVE = ("#ffd9a0", "#ffb347", "#ff8c1a"), ("#99ddff", "#4db8ff", "#00aaff")


def is_narrow() -> bool:
    return console.width < NARROW


def say(text: str, style: str = "dim") -> None:
    """Prints a remark of the chat itself: wrapped between words on a terminal, on one line in a pipe."""
    console.print(text, style=style, soft_wrap=not console.is_terminal)


def labelled(name: str, text: Text) -> Text:
    return Text.assemble((f"{name}> ", "bold"), text)


# --- answers ---------------------------------------------------------------------------------------------------------


@contextmanager
def drawing(names: Sequence[str]) -> Iterator[Callable[[str, Text], None]]:
    """Gives a function that draws a stage's answer over its earlier state; several stages have a column each.

    Where there is no terminal, the answers are printed once, when the block ends.
    """
    answers = dict.fromkeys(names, Text())
    if not console.is_terminal:
        yield answers.__setitem__
        console.print(_side_by_side(answers), soft_wrap=True)
        return
    with Live(console=console, auto_refresh=False) as live:

        def show(name: str, text: Text) -> None:
            answers[name] = text
            live.update(_side_by_side(answers), refresh=True)

        yield show


def _side_by_side(answers: dict[str, Text]) -> Table | Text:
    if len(answers) == 1:
        return labelled(*next(iter(answers.items())))
    table = Table(*answers, expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*answers.values())
    return table


def partial_answer(tokenizer: PreTrainedTokenizerBase, samples: Sequence[list[int]]) -> Text:
    """An answer that is still being sampled, as text; of several samples, only how far they are."""
    if len(samples) > 1:
        return Text(f"({len(samples)} samples, {sum(map(len, samples))} tokens)", style="dim")
    return Text(printable(decode_partial(tokenizer, samples[0])))


def decode_partial(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of the first tokens of an answer, without the bytes at its end that are only part of a character."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ")
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def answer_text(exchange: Exchange) -> Text:
    """A whole answer, with notes on how it ended and how the reward model scored it."""
    response, scores = exchange.response, sorted(exchange.scores)
    text = Text(printable(response.text))
    if not response.text.strip():
        text.append("(an empty answer: neither it nor your message is kept)", style="dim")
    elif not response.ended:
        text.append(" (truncated)", style="dim")
    if scores:
        *others, best = scores
        mean = sum(others) / len(others)
        note = f"\nRM {best:+.2f}, best of {len(scores)}; the others {others[0]:+.2f} to {others[-1]:+.2f}, "
        text.append(f"{note}mean {mean:+.2f}", style="dim")
    return text


# --- the token microscope --------------------------------------------------------------------------------------------


def show_view(view: View, exchange: Exchange, measure: str) -> None:
    """Prints a response coloured by one of MEASURES, then a table of each token's numbers, then how to read them."""
    strongest = max((abs(value) for token in view.tokens if math.isfinite(value := getattr(token, measure))), default=0)
    styles = [colour(getattr(token, measure), strongest) for token in view.tokens]
    words = zip((printable(token.text) for token in view.tokens), styles, strict=True)
    console.print(Text.assemble((f"{exchange.stage}>", "bold"), *words))
    above = ("bold: above 0", colour(strongest, strongest))
    below = ("underlined: below 0", colour(-strongest, strongest))
    title, _ = MEASURES[measure]
    console.print(Text.assemble(f"{title} (", above, ", ", below, f", strongest at {strongest:.2f})"))

    names = [measure] if is_narrow() else list(MEASURES)
    table = Table("token", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True)
    table.add_column("SFT's top token")
    for token, style in zip(view.tokens, styles, strict=True):
        cells = [Text(number(getattr(token, name)), style=style if name == measure else "") for name in names]
        instead = "the same" if token.instead == token.text else visible(token.instead)
        table.add_row(Text(visible(token.text)), *cells, Text(f"{instead} {math.exp(token.instead_logprob):.0%}"))
    console.print(table)
    for title, reading in [MEASURES[name] for name in names]:
        say(f"{title}: {reading}")
    say("SFT's top token: the one to which SFT gives the highest probability here, and that probability.")


def number(value: float) -> str:
    """With its sign; "-" for what is not known."""
    return "-" if math.isnan(value) else f"{value:+z.2f}"


def colour(value: float, strongest: float) -> str:
    """A token's style: blue and bold above 0, orange and underlined below, none near 0."""
    strength = abs(value) / strongest if strongest else 0.0
    if math.isnan(strength) or strength < 0.1:
        return ""
    shade = min(int(3 * strength), 2)
    return f"bold black on {ABOVE[shade]}" if value > 0 else f"underline black on {BELOW[shade]}"


def visible(token: str) -> str:
    """A token with visible spaces and line ends."""
    return printable(token.replace(" ", "·").replace("\n", "↵"))
