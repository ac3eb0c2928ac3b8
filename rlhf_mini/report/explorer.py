"""The data behind the report's two interactive parts, side by side and token microscope.

`Explorer` is what explorer.js reads: the dataclasses below become JSON objects with the names of their fields. This
module also chooses the prompts that the microscope looks at, and leaves out prompts where the page would grow too big.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypeVar

from annotated_types import MinLen
from pydantic import AfterValidator
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from rlhf_mini.core.console import console, track
from rlhf_mini.core.examples import Messages, Response
from rlhf_mini.core.texts import Texts
from rlhf_mini.evaluation.answers import STAGES, mixed
from rlhf_mini.report.cost import STAGE_TITLES
from rlhf_mini.world.gold import WEIGHTS

if TYPE_CHECKING:  # it imports torch, which takes seconds; mistakes on the command line are reported before that
    from rlhf_mini.evaluation.microscope import Microscope

T = TypeVar("T")


def _of_all_stages(answers: dict[str, Any]) -> dict[str, Any]:
    if not set(STAGES) <= answers.keys():
        raise ValueError("lacks a stage")
    return answers


Row = dict[str, Any]  # a line of compare.jsonl, with the keys of `RowKeys`


class AnswerKeys(TypedDict):
    """What the page takes from a stage's answer in compare.jsonl."""

    response: str
    ended: bool
    tokens: NotRequired[int | None]
    ids: NotRequired[list[int] | None]
    rm_score: NotRequired[float | None]
    gold: NotRequired[float | None]
    kl: NotRequired[float | None]
    parts: NotRequired[dict[str, float | None] | None]


class MessageKeys(TypedDict):
    """A message of the prompt."""

    role: str
    content: str


Label = str | int | float | None


class RowKeys(TypedDict):
    """What the page takes from a line of compare.jsonl. A user's own prompts may have labels of other types."""

    prompt: Annotated[list[MessageKeys], MinLen(1)]
    stages: Annotated[dict[str, AnswerKeys], AfterValidator(_of_all_stages)]
    id: NotRequired[Label]
    use_case: NotRequired[Label]
    kind: NotRequired[Label]
    novel: NotRequired[Label]


# Bytes of JSON. The models take up 10.2 MB at most (live.py) and the rest 0.3 MB: the page stays under 12 MB. The mini
# world needs 1.1 MB and 0.3 MB.
MAX_PROMPTS, MAX_LOOKS = 1_150_000, 350_000


@dataclass(frozen=True)
class Answer:
    """A stage's response to a prompt. None where it was not measured."""

    text: str
    ended: bool
    """False if the response was truncated."""
    tokens: int | None
    rm_score: float | None
    gold: float | None
    log_ratio: float | None
    """log p(response) under the stage's model minus that under SFT, in nats."""
    parts: dict[str, float]
    """The parts of the gold score that apply to this prompt."""


@dataclass(frozen=True)
class Look:
    """A response under the microscope; each list has one entry for each token."""

    score: float | None
    """Of the whole response, by what PPO was trained on."""
    text: list[str]
    logprob: list[float | None]
    """log p(token) of the PPO policy."""
    ref_logprob: list[float | None]
    """The same of the SFT model."""
    measures: dict[str, list[float | None]]
    """By the names in `Explorer.measures`."""
    ref_top: list[str]
    """The token that is most likely under the SFT model."""
    ref_top_logprob: list[float | None]


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt with its answers, by stage. A prompt of the user's own has "" where nothing is known of it."""

    id: str
    use_case: str
    kind: str
    novel: str
    messages: Messages
    answers: dict[str, Answer]
    looks: dict[str, Look]
    """Of SFT and PPO; empty for a prompt that was not chosen for the microscope."""


@dataclass(frozen=True)
class Measure:
    """A number that tokens can be coloured by."""

    title: str
    how: str
    """How to read it."""
    scale: float
    """The absolute value from which on a token has its full colour."""


@dataclass(frozen=True)
class Explorer:
    """All that explorer.js reads."""

    stages: dict[str, str]
    """Name and title, in the order of training."""
    measures: dict[str, Measure]
    prompts: list[ShownPrompt]
    texts: dict[str, str]
    """What the page says, with {words in braces} to fill in, and the names of parts, use cases and kinds."""


# --- choosing prompts ------------------------------------------------------------------------------------------------


def gain(row: Row, key: str = "gold") -> float | None:
    """PPO's gold (or another score) minus SFT's. None if one of them was not measured."""
    sft, ppo = (row["stages"][name].get(key) for name in ("sft", "ppo"))
    return None if sft is None or ppo is None else ppo - sft


def disagreement(row: Row) -> float | None:
    """How strongly RM and gold contradict each other on SFT against PPO; negative if they agree."""
    by_gold, by_rm = gain(row), gain(row, "rm_score")
    return None if by_gold is None or by_rm is None else -by_gold * by_rm


def pick(rows: Sequence[Row], number: int, seed: int) -> list[int]:
    """The indices of `number` rows for the microscope.

    They are the first row, which the page opens with; a quarter each of the largest gains, the largest losses and the
    strongest disagreements of RM and gold; and rows drawn from all use cases in turn.
    """

    def smallest(measure: Callable[[Row], float | None], sign: int) -> list[int]:
        found = [(sign * value, index) for index, row in enumerate(rows) if (value := measure(row)) is not None]
        return [index for _, index in sorted(found)[: number // 4]]

    index_of = {id(row): index for index, row in enumerate(rows)}
    drawn = [index_of[id(row)] for row in mixed(rows, lambda row: row.get("use_case"), len(rows), seed)]
    extremes = [0, *smallest(gain, -1), *smallest(gain, 1), *smallest(disagreement, -1)]
    return list(dict.fromkeys([*extremes, *drawn]))[:number]


# --- the microscope --------------------------------------------------------------------------------------------------


def look_at(run_dir: Path, rows: Sequence[Row], indices: Sequence[int], reward: str = "") -> dict[int, dict[str, Look]]:
    """Looks at SFT's and PPO's responses to these rows. By index, then by stage. `reward` as in `Microscope`."""
    if not indices:
        return {}
    import torch

    from rlhf_mini.evaluation.microscope import Microscope

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads do not speed up a single response, and suffer from other work
    try:
        microscope = Microscope(run_dir, reward)
        if microscope.note:
            console.print(f"report: {microscope.note}", soft_wrap=True)
        return {
            index: {
                stage: look(microscope, rows[index]["prompt"], answer)
                for stage in ("sft", "ppo")
                if (answer := rows[index]["stages"][stage])["response"] or answer["ended"]  # it has a token
            }
            for index in track(indices, "report: token microscope")
        }
    finally:
        torch.set_num_threads(threads)


def look(microscope: "Microscope", prompt: Messages, answer: dict[str, Any]) -> Look:
    from rlhf_mini.evaluation.microscope import MEASURES

    view = microscope.look(prompt, Response(answer["response"], answer["ended"], answer.get("ids") or []))

    def column(name: str) -> list[float | None]:
        return [rounded(getattr(token, name), 3) for token in view.tokens]

    return Look(
        score=rounded(view.score, 3),
        text=[token.text for token in view.tokens],
        logprob=column("logprob"),
        ref_logprob=column("ref_logprob"),
        measures={name: column(name) for name in MEASURES},
        ref_top=[token.instead for token in view.tokens],
        ref_top_logprob=column("instead_logprob"),
    )


def colour_scale(columns: Iterable[Sequence[float | None]]) -> float:
    """The 90th percentile of a measure's absolute values, without the last token of each response."""
    sizes = sorted(abs(value or 0.0) for column in columns for value in column[:-1])
    return round(max(sizes[int(0.9 * len(sizes))], 0.01), 2) if sizes else 1.0


# --- packing ---------------------------------------------------------------------------------------------------------


def pack_explorer(rows: Sequence[Row], looks: Mapping[int, dict[str, Look]], texts: Texts) -> Explorer:
    """Packs rows and looks for the page. Rows that have a look come first where there is no room for all."""
    from rlhf_mini.evaluation.microscope import MEASURES

    taken = [look for by_stage in looks.values() for look in by_stage.values()]
    measures = {
        name: Measure(
            texts.of(f"measure.{name}.title", title),
            texts.of(f"measure.{name}.how", how),
            colour_scale(look.measures[name] for look in taken),
        )
        for name, (title, how) in MEASURES.items()
    }
    fitting_looks = dict(fitting(looks.items(), MAX_LOOKS))
    with_look_first = sorted(range(len(rows)), key=lambda index: index not in fitting_looks)
    packed = ((index, pack_prompt(rows[index], index)) for index in with_look_first)
    prompts = dict(fitting(packed, MAX_PROMPTS))
    return Explorer(
        stages={name: STAGE_TITLES[name] for name in STAGES},
        measures=measures,
        prompts=[dataclasses.replace(prompts[i], looks=fitting_looks.get(i, {})) for i in sorted(prompts)],
        texts=texts.starting("script.", "part.", "use_case.", "kind.", "novel."),
    )


def pack_prompt(row: Row, index: int) -> ShownPrompt:
    """A row without its looks."""
    return ShownPrompt(
        id=row.get("id") or f"prompt-{index}",
        use_case=row.get("use_case") or "",
        kind=row.get("kind") or "",
        novel=row.get("novel") or "",
        messages=[{"role": message["role"], "content": message["content"]} for message in row["prompt"]],
        answers={stage: pack_answer(row["stages"][stage]) for stage in STAGES},
        looks={},
    )


def pack_answer(answer: dict[str, Any]) -> Answer:
    parts = answer.get("parts") or {}
    return Answer(
        text=answer["response"],
        ended=bool(answer["ended"]),
        tokens=answer.get("tokens"),
        rm_score=rounded(answer.get("rm_score"), 2),
        gold=rounded(answer.get("gold"), 2),
        log_ratio=rounded(answer.get("kl"), 2),
        parts={part: value for part in WEIGHTS if (value := rounded(parts.get(part), 2)) is not None},
    )


def fitting(items: Iterable[T], size: int) -> list[T]:
    """The first items whose JSON takes up at most `size` bytes."""
    taken = []
    for item in items:
        text = json.dumps(item, default=dataclasses.asdict, separators=(",", ":"))
        size -= len(text) + 1  # ASCII, as in the page
        if size < 0:
            break
        taken.append(item)
    return taken


def rounded(value: float | None, digits: int) -> float | None:
    """Rounded, without a ".0" at the end; None if `value` is not a finite number."""
    if value is None or not math.isfinite(value):
        return None
    rounded = round(value, digits)
    return int(rounded) if rounded == int(rounded) else rounded
