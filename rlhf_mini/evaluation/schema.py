"""What compare.json, evaluate.json and overopt.json hold, and how they are read.

`write_json` writes these dataclasses as they stand; `read` checks a file against one of them.
"""

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import Number, read_json

T = TypeVar("T")

ByStage = dict[str, Estimate]
"""{"base": Estimate, "sft": ..., "ppo": ...}"""
ByJudge = dict[str, dict[str, Estimate]]
"""By judge, then by pair ("ppo/sft") or by player ("ppo", or "run/ppo" if there are several runs)."""


def read(kind: type[T], path: Path, how: str) -> T:
    """The content of a file that `write_json` wrote; `how` says what to do if it is missing, such as "run `make x`".

    Its dicts, too, raise a UserError for a stage, a judge or a measure that they lack.

    Raises:
        UserError: there is no such file, it is damaged, or another version of this project wrote it.
    """

    class Found(dict[str, Any]):
        def __missing__(self, key: str) -> Any:
            raise UserError(f"{path} lacks {key!r}: {how}")

    def found(value: Any) -> Any:
        if isinstance(value, dict):
            return Found({key: found(item) for key, item in value.items()})
        if isinstance(value, list):
            return [found(item) for item in value]
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{field.name: found(getattr(value, field.name)) for field in fields(value)})
        return value

    if not path.is_file():
        raise UserError(f"{path} does not exist yet: {how}")
    try:
        return cast(T, found(TypeAdapter(kind).validate_python(read_json(path))))
    except ValidationError:
        raise UserError(f"{path} was written by another version of this project: {how}") from None


# --- compare.json ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """A checkpoint that was measured."""

    path: str
    sha256: str
    seed: int
    files_sha256: str = ""
    """Of all its files; "" in a file of an older version."""


@dataclass(frozen=True)
class Provenance:
    """What was measured, and how to measure it again."""

    command: str
    options: dict[str, Any]
    checkpoints: dict[str, Weights]
    """By stage."""
    split_sha256: str
    data_sha256: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Group:
    """The prompts of a use case, or of a kind of novelty, or all of them."""

    prompts: int
    stages: dict[str, dict[str, Estimate]]
    """By stage and measure."""


@dataclass(frozen=True)
class Spent:
    """What a stage cost."""

    seconds: float
    peak_memory_mb: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """compare.json."""

    format: Literal[2] = 2
    headline: dict[str, Estimate]
    use_cases_below_sft: list[str]
    cost: dict[str, Spent]
    """By stage."""
    groups: dict[str, Group]
    """"all", "use_case/..." and "novel/..."."""
    demonstrated_tokens: dict[str, float]
    """Mean length of demonstrations, for "all" and by "use_case/..."."""
    provenance: Provenance


# --- evaluate.json ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gold:
    """Gold of each stage on a group of prompts, and PPO's win rate over SFT there by the held-out labelers."""

    prompts: int
    gold: ByStage
    win_rate: Estimate


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a probe found."""

    title: str
    how: str
    """What counts, in a sentence."""
    unit: str
    """ "share" or "nats"."""
    better: str
    """ "higher" or "lower"."""
    prompts: int
    stages: ByStage


@dataclass(frozen=True)
class Ordered:
    """The share of pairs whose better response is put first."""

    pairs: int
    rm: Estimate
    """By the reward model's score."""
    base: Estimate
    """By log-likelihood, as in `sft`."""
    sft: Estimate


@dataclass(frozen=True)
class Contrast:
    """Pairs of a kind, with the same manners and different content."""

    title: str
    seen: Ordered
    new: Ordered
    """Pairs on what occurs in no training prompt."""

    @property
    def parts(self) -> dict[str, Ordered]:
        """Those that have pairs."""
        return {name: part for name, part in (("seen", self.seen), ("new", self.new)) if part.pairs}


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Something cheaper than PPO, on the prompts of the comparison."""

    title: str
    how: str
    """What it is, in a sentence."""
    prompts: int
    estimates: dict[str, Estimate]
    """Of gold and of each of its parts."""
    ppo_minus: Estimate
    """PPO's gold in the comparison minus this gold, prompt by prompt."""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How much the responses of a stage differ from each other."""

    samples: int
    """Responses to each prompt."""
    prompts: int
    distinct: Estimate
    """How many of these responses differ in more than case and whitespace."""
    stories: int
    """Prompts of the comparison that ask for a story."""
    last_sentence: str
    """The commonest last sentence of the stories; "" without a story."""
    last_sentence_share: Estimate


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """evaluate.json of runs that differ in more than the seed: a mean over them would say nothing, but ratings do."""

    format: Literal[2] = 2
    runs: list[str]
    prompts: int
    bradley_terry: ByJudge
    """Ratings in Elo points over the base."""
    by_run: dict[str, dict[str, ByStage]]
    """A few measures of each run, by name of the run and of the measure."""
    provenance: dict[str, Provenance]
    """By run."""
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PooledEvaluation(Evaluation):
    """evaluate.json of one run, or of several that differ only in the seed."""

    stages: dict[str, dict[str, Estimate]]
    """By stage and measure."""
    win_rates: ByJudge
    length_controlled: ByJudge
    references_with_gold: Estimate | None = None
    """Pearson's correlation of the scores by references and by gold; None where no prompt has references."""
    use_cases: dict[str, Gold]
    novel: dict[str, Gold]
    probes: dict[str, Probed]
    content: dict[str, Contrast]
    """By kind; {} if it was not measured."""
    baselines: dict[str, Baseline]
    diversity: dict[str, Diversity]
    """Of SFT and PPO."""

    def compared(self) -> dict[str, Baseline]:
        """SFT, the baselines and PPO by name, in one form for tables."""
        sft, ppo = self.stages["sft"], self.stages["ppo"]
        nothing = Estimate(math.nan, math.nan, math.nan)
        return {
            "sft": Baseline(title="SFT", how="", prompts=self.prompts, estimates=sft, ppo_minus=ppo["gold_minus_sft"]),
            **self.baselines,
            "ppo": Baseline(title="PPO", how="", prompts=self.prompts, estimates=ppo, ppo_minus=nothing),
        }


# --- overopt.json ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Point:
    """A policy, measured as gains over the SFT model on the same prompts."""

    kl: float
    """To the SFT model, in nats per response."""
    proxy: Estimate
    gold: Estimate
    n: int | None = None
    """Of best-of-n."""
    update: int | None = None
    """Of a PPO training: the iteration it is from."""
    tokens: float | None = None
    """Mean length of its responses."""
    gold_by_prompt: list[float] | None = None
    """(P,), kept while the study runs; None in overopt.json."""


@dataclass(frozen=True)
class Fit:
    """Least squares of Gao et al.'s form on d = sqrt(KL); NaN for fewer than three points."""

    a: Number
    b: Number
    rmse: Number
    """Root mean squared error, in units of the gain."""
    r2: Number
    """The share of the gains' variance that the form explains: near 0 or below, it explains nothing."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One way to optimise: its points, the fall from its peak, and the fits of gold and proxy."""

    points: list[Point]
    fall: Estimate
    fit: dict[str, Fit]
    """By "proxy" and "gold"."""


@dataclass(frozen=True, kw_only=True)
class Training(Curve):
    """The curve of a PPO training."""

    kl_coef: float
    default: bool
    """Whether this is the kl_coef of the run's own PPO."""


@dataclass(frozen=True)
class Start:
    """The SFT model's means, from which gains count."""

    proxy: float
    gold: float


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is optimised against one reward model."""

    name: str
    title: str
    what: str
    proxy_name: str
    rm: dict[str, Any]
    """Checksum, metrics and options of the reward model."""
    sft: Start
    recipe: Point
    """The run's own PPO."""
    best_of_n: Curve
    ppo: list[Training]


@dataclass(frozen=True, kw_only=True)
class Study:
    """overopt.json."""

    format: Literal[1] = 1
    prompts: int
    scenarios: list[Scenario]
    provenance: dict[str, Any]
