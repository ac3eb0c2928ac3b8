"""Evaluates base, SFT and PPO of one run, or of several that differ in their seed, on the test prompts.

    python -m rlhf_mini.evaluation.evaluate                                # runs/default
    python -m rlhf_mini.evaluation.evaluate --runs seed0,seed1,seed2       # and over seeds: runs/evaluate.json

It does what `rlhf_mini.evaluation.compare` does for each run, and adds win rates of every pair by four judges (gold,
one that compares with reference answers, the held-out labelers, the run's own reward model), length-controlled win
rates, Bradley-Terry ratings over all pairs, probes (truth, invention, harm, tone, and what the stages forgot of the
base), baselines (the gold that cheaper things than PPO reach) and diversity. The reward model also orders pairs with
the same manners and different content. Judges never learn which stage wrote what they judge.

What to inspect: the win rates first. The judge that PPO was trained on (rm) should like PPO more than the others do,
but should not contradict them. Then the baselines: what a page of string rules or best-of-16 reaches as well is no
merit of PPO. Then the probes: they show what a better mean score hides.

Runs that differ only in the seed are also pooled, with intervals over prompts and over runs. With three runs the part
that comes from seeds is too narrow: where seeds matter more than prompts, such an interval holds the truth in three
cases of four, not in 95 of 100. Runs that differ in more are rated side by side.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from rich.table import Table
from rich.text import Text

from rlhf_mini.core.bootstrap import Estimate, divide, interval, resampled_ratios
from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError, console, printable, run
from rlhf_mini.core.examples import Prompt, read_demonstrations, read_preferences, read_prompts
from rlhf_mini.core.files import write_json
from rlhf_mini.core.options import (
    RunName,
    RunsDir,
    Seed,
    check_run_name,
    command_line,
    option,
    options,
    parse_options,
)
from rlhf_mini.evaluation import compare
from rlhf_mini.evaluation.answers import JUDGES, PAIRS, STAGES, Row
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.evaluation.runs import find_checkpoints, measuring
from rlhf_mini.evaluation.schema import (
    ByJudge,
    ByStage,
    Contrast,
    Evaluation,
    Gold,
    Group,
    Ordered,
    PooledEvaluation,
    Probed,
    Provenance,
    Summary,
)
from rlhf_mini.evaluation.summary import grouped
from rlhf_mini.evaluation.tables import cells, decimal, grid, grid_of, percent

if TYPE_CHECKING:  # imports torch, for which --help and early mistakes should not wait
    import numpy as np

    from rlhf_mini.evaluation import baselines, content
    from rlhf_mini.evaluation.probes import Values

SAME = ("sft", "rm", "ppo")  # stages whose options must be the same, except for the seed, for runs to be pooled
BY_RUN = ("gold", "rm_score", "kl", "tokens", "eos", "wins/heldout", "wins/gold")


@options
class EvaluateOptions:
    """Options of `python -m rlhf_mini.evaluation.evaluate`."""

    run: RunName = option("default", "Name of the run; its checkpoints are in RUNS_DIR/RUN.")
    runs: str = option("", "Names of several runs, comma-separated: each is evaluated, and all of them together.")
    runs_dir: RunsDir = option("runs", "Folder of all runs.")
    base: str = option("data/base", "The pretrained checkpoint that SFT started from.")
    out: str = option("", "Where the results of several runs together go (default: RUNS_DIR/evaluate.json).")
    seed: Seed = option(0, "Seed of the responses and of the bootstrap.")

    split: str = option("data/prompts/test.jsonl", "JSONL of prompts that SFT, RM and PPO did not train on.")
    num_prompts: NonNegativeInt = option(0, "Use only the first NUM_PROMPTS of them (0: all).")
    max_new_tokens: PositiveInt = option(48, "Tokens after which a response is truncated.")
    temperature: NonNegativeFloat = option(0.7, "Temperature of the responses; 0 decodes greedily.")
    labelers: str = option(
        "rlhf_mini.world.labelers:heldout_labelers",
        "package.module:function that returns the judges: labelers whose rankings train nothing.",
    )
    samples: PositiveInt = option(4, "Responses to each prompt of the probes that have prompts of their own.")
    content: str = option(
        "data/content/test.jsonl",
        'JSONL of pairs with the same manners and different content, to measure the reward model on; "" for none.',
    )

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names) or not all(self.names):
            raise UserError(f"--runs must name different runs, comma-separated, not {self.runs!r}")
        for name in self.names:
            try:
                check_run_name(name)
            except ValueError as fault:
                raise UserError(f"each name in --runs {fault}") from None

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.runs.split(",")] if self.runs else [self.run]

    def of_run(self, name: str) -> CompareOptions:
        shared = ("runs_dir", "base", "seed", "split", "num_prompts", "max_new_tokens", "temperature", "labelers")
        return CompareOptions(run=name, **{key: getattr(self, key) for key in shared})


@dataclass(frozen=True)
class Measured:
    """What was measured on one run."""

    rows: list[Row]
    summary: Summary
    probes: "Values"
    content: "content.Values"
    baselines: "baselines.Values"
    distinct: dict[str, list[int]]
    """By stage, how many of several responses to each prompt differ."""


def main() -> None:
    options = parse_options(
        EvaluateOptions,
        prog="python -m rlhf_mini.evaluation.evaluate",
        description="Evaluates base, SFT and PPO of one or several runs: judges, ratings, probes, intervals.",
    )
    evaluate(options, command_line("python -m rlhf_mini.evaluation.evaluate"))


def evaluate(options: EvaluateOptions, command: str) -> None:
    """Writes runs/<run>/compare.jsonl, compare.json and evaluate.json of each run, and --out if there are several.

    UserError if another process is measuring one of them.
    """
    with ExitStack() as locks:
        for name in sorted(options.names):
            locks.enter_context(measuring(Path(options.runs_dir) / name))
        _evaluate(options, command)


def _evaluate(options: EvaluateOptions, command: str) -> None:
    runs_dir = Path(options.runs_dir)
    found = {name: find_checkpoints(runs_dir / name, options.base) for name in options.names}
    poolable = can_be_pooled(found)
    examples = read_prompts(options.split)[: options.num_prompts or None]
    demonstrations = read_demonstrations(CompareOptions.demonstrations)
    preferences = read_preferences(options.content) if options.content else []

    from rlhf_mini.evaluation import baselines, content, diversity, probes, responses  # import torch

    measured: dict[str, Measured] = {}
    for name, checkpoints in found.items():
        if len(found) > 1:
            console.print(f"evaluate: {name}")
        of_run = options.of_run(name)
        stages, reward_model = responses.load_stages(checkpoints)
        rows, summary = compare.measure(of_run, command, checkpoints, stages, reward_model, examples, demonstrations)
        sampling = of_run.sampling()
        samples = diversity.sample(stages, examples, sampling)
        measured[name] = Measured(
            rows,
            summary,
            probes=probes.measure(stages, rows, options.samples, sampling),
            content=content.measure(stages, reward_model, preferences),
            baselines=baselines.measure(stages, reward_model, examples, rows, samples["sft"], sampling),
            distinct={stage: diversity.distinct(of_stage) for stage, of_stage in samples.items()},
        )
        compare.write(of_run, rows, summary)
        evaluation: Evaluation = pooled({name: measured[name]}, examples, options)
        write_json(of_run.run_dir / "evaluate.json", evaluation)
    if len(measured) > 1:
        evaluation = (pooled if poolable else side_by_side)(measured, examples, options)
    show(evaluation)
    for name in measured:
        console.print(f"evaluate: {runs_dir / name / 'evaluate.json'} written", soft_wrap=True)
    if len(measured) > 1:
        out = Path(options.out or runs_dir / "evaluate.json")
        write_json(out, evaluation)
        console.print(f"evaluate: {out} written", soft_wrap=True)


def can_be_pooled(found: dict[str, dict[str, Checkpoint]]) -> bool:
    """Whether the runs differ only in the seed.

    UserError if two of them are the same: copies would count as evidence.
    """
    weights: dict[str, str] = {}
    for name, checkpoints in found.items():
        same = weights.setdefault(checkpoints["ppo"].sha256, name)
        if same != name:
            raise UserError(f"{same} and {name} have the same PPO weights: name each run once")
    ignored = {"run", "runs_dir", "seed"}
    for stage in SAME:
        first, *others = (checkpoints[stage].info["options"] for checkpoints in found.values())
        for other in others:
            different = sorted(key for key in {*first, *other} - ignored if first.get(key) != other.get(key))
            if different:
                names = ", ".join(different)
                console.print(
                    f"evaluate: the {stage} stages differ in {names}, so the runs are rated side by side",
                    soft_wrap=True,
                )
                return False
    return True


# --- evaluate.json ---------------------------------------------------------------------------------------------------


def pooled(measured: dict[str, Measured], examples: Sequence[Prompt], options: EvaluateOptions) -> PooledEvaluation:
    """What one run, or several together, came to."""
    from rlhf_mini.evaluation import baselines, diversity, pairs

    runs, each, seed = len(measured), list(measured.values()), options.seed
    rows = [row for one in each for row in one.rows]
    distinct = {stage: [count for one in each for count in one.distinct[stage]] for stage in each[0].distinct}
    groups = grouped(rows, each[0].summary.demonstrated_tokens, seed, runs)
    return PooledEvaluation(
        **vars(side_by_side(measured, examples, options)),
        stages={
            stage: {name: estimate for name, estimate in estimates.items() if not name.startswith("wins/")}
            for stage, estimates in groups["all"].stages.items()
        },
        win_rates=pairs.win_rates(rows, runs, seed),
        length_controlled=pairs.length_controlled_win_rates(rows, runs, seed),
        references_with_gold=pairs.references_with_gold(rows, runs, seed),
        use_cases=by_group(groups, "use_case/"),
        novel=by_group(groups, "novel/"),
        probes=probed([one.probes for one in each], seed),
        content=contrasted([one.content for one in each], seed),
        baselines=baselines.estimated([one.baselines for one in each], seed),
        diversity=diversity.estimated(rows, distinct, runs, seed),
    )


def side_by_side(measured: dict[str, Measured], examples: Sequence[Prompt], options: EvaluateOptions) -> Evaluation:
    """What runs came to that differ in more than the seed."""
    return Evaluation(
        runs=list(measured),
        prompts=len(examples),
        bradley_terry=ratings(measured, examples, options),
        by_run=by_run(measured),
        provenance=provenance(measured),
        options=asdict(options),
    )


def ratings(measured: dict[str, Measured], examples: Sequence[Prompt], options: EvaluateOptions) -> ByJudge:
    """Bradley-Terry ratings by judge and player."""
    from rlhf_mini.evaluation import pairs, responses

    rows = {name: one.rows for name, one in measured.items()}
    return pairs.rate(rows, examples, responses.load_judges(options.labelers), options.seed)


def by_run(measured: dict[str, Measured]) -> dict[str, dict[str, ByStage]]:
    """A few measures of each run, by stage."""
    stages = {name: one.summary.groups["all"].stages for name, one in measured.items()}
    return {
        name: {key: {stage: estimates[key] for stage, estimates in of_run.items()} for key in BY_RUN}
        for name, of_run in stages.items()
    }


def by_group(groups: dict[str, Group], prefix: str) -> dict[str, Gold]:
    """The groups named prefix + ..., the largest first."""
    return {
        name.removeprefix(prefix): Gold(
            prompts=group.prompts,
            gold={stage: estimates["gold"] for stage, estimates in group.stages.items()},
            win_rate=group.stages["ppo"]["wins/heldout"],
        )
        for name, group in sorted(groups.items(), key=lambda item: -item[1].prompts)
        if name.startswith(prefix)
    }


def probed(values: "Sequence[Values]", seed: int) -> dict[str, Probed]:
    """What each probe found, from the values of each run."""
    from rlhf_mini.evaluation import probes

    return {
        name: Probed(
            **vars(probe),
            prompts=len(values[0][name]["sft"]),
            stages={stage: ratio([of_run[name][stage] for of_run in values], seed) for stage in STAGES},
        )
        for name, probe in probes.PROBES.items()
    }


def contrasted(values: "Sequence[content.Values]", seed: int) -> dict[str, Contrast]:
    """How each kind of pair is ordered, from the values of each run."""
    from stages.rm.content import TITLES

    def ordered(kind: str, part: str) -> Ordered:
        of_runs = [of_run[kind][part] for of_run in values]
        estimates = {judge: ratio([of_run[judge] for of_run in of_runs], seed) for judge in of_runs[0]}
        return Ordered(pairs=len(of_runs[0]["rm"]), **estimates)

    return {kind: Contrast(TITLES.get(kind, kind), ordered(kind, "seen"), ordered(kind, "new")) for kind in values[0]}


def provenance(measured: dict[str, Measured]) -> dict[str, Provenance]:
    """What each run was measured on."""
    return {name: one.summary.provenance for name, one in measured.items()}


def ratio(values: "Sequence[np.ndarray]", seed: int) -> Estimate:
    """Numerators over denominators, summed over prompts and runs; one array (n, 2) per run."""
    import numpy as np

    rows = np.concatenate(values)  # (r * n, 2)
    low, high = interval(resampled_ratios(rows[:, :1], rows[:, 1:], seed=seed, runs=len(values)))
    return Estimate(float(divide(rows[:, 0].sum(), rows[:, 1].sum())), float(low[0]), float(high[0]))


# --- the console -----------------------------------------------------------------------------------------------------


def show(evaluation: Evaluation) -> None:
    """The tables: win rates, ratings, baselines, diversity, probes, content and what is new."""
    console.print()
    if isinstance(evaluation, PooledEvaluation):
        console.print(wins_table(evaluation))
        if evaluation.references_with_gold:
            correlation, span = cells(evaluation.references_with_gold)
            console.print(f"Scores by reference answers and by gold correlate at {correlation} ({span})\n")
        console.print(ratings_table(evaluation))
        console.print(baselines_table(evaluation))
        console.print(diversity_table(evaluation))
        console.print(probes_table(evaluation))
        if evaluation.content:
            console.print(content_table(evaluation))
        console.print(novel_table(evaluation))
    else:
        console.print(ratings_table(evaluation))
        console.print(runs_table(evaluation))


def wins_table(evaluation: PooledEvaluation) -> Table:
    title = "Win rates, a tie counts one half"
    table = grid(title, "", "judge", "wins", "95 %", "length-controlled", left=2)
    rows = []
    for pair, of_pair in PAIRS.items():
        for judge in evaluation.win_rates:
            wins, controlled = evaluation.win_rates[judge][pair], evaluation.length_controlled[judge][pair]
            title = of_pair if judge == "gold" else ""
            rows.append([title, JUDGES[judge], *cells(wins, percent), percent(controlled.mean)])
    return grid_of(table, rows)


def ratings_table(evaluation: Evaluation) -> Table:
    judges = evaluation.bradley_terry
    columns = [column for judge in judges for column in (JUDGES[judge], "95 %")]
    table = grid("Bradley-Terry ratings, Elo points over the base", "", *columns)
    rows = []
    for player in judges["gold"]:
        ratings = [cells(of_judge[player], lambda value: decimal(value, 0)) for of_judge in judges.values()]
        rows.append([player, *(cell for pair in ratings for cell in pair)])
    return grid_of(table, rows)


def baselines_table(evaluation: PooledEvaluation) -> Table:
    table = grid("Baselines", "", "gold", "95 %", "PPO minus it", "95 %", "task", "truthful")
    rows = []
    for one in evaluation.compared().values():
        parts = [decimal(one.estimates[part].mean) for part in ("task", "truthful")]
        rows.append([one.title, *cells(one.estimates["gold"]), *cells(one.ppo_minus), *parts])
    return grid_of(table, rows)


def diversity_table(evaluation: PooledEvaluation) -> Table:
    table = grid("Diversity", "", "distinct answers", "95 %", "last sentence of stories", "share")
    rows = []
    for stage, found in evaluation.diversity.items():
        distinct, span = cells(found.distinct, lambda value: decimal(value, 1))
        share = percent(found.last_sentence_share.mean)
        rows.append([stage, f"{distinct} of {found.samples}", span, Text(printable(found.last_sentence)), share])
    return grid_of(table, rows)


def probes_table(evaluation: PooledEvaluation) -> Table:
    table = grid("Probes, and which way is better", "", "", *STAGES, left=2)
    rows = []
    for probe in evaluation.probes.values():
        form = percent if probe.unit == "share" else decimal
        both = [cells(estimate, form) for estimate in probe.stages.values()]
        arrow = "\N{UPWARDS ARROW}" if probe.better == "higher" else "\N{DOWNWARDS ARROW}"
        rows.append([arrow, probe.title, *(f"{mean} ({span.replace('%', '')})" for mean, span in both)])
    return grid_of(table, rows)


def content_table(evaluation: PooledEvaluation) -> Table:
    title = "Same manners, different content: the better response first, by score or log-likelihood"
    table = grid(title, "", "", "pairs", "RM", "base", "SFT", left=2)
    rows = []
    for contrast in evaluation.content.values():
        for part, found in contrast.parts.items():
            both = [cells(estimate, percent) for estimate in (found.rm, found.base, found.sft)]
            shares = [f"{mean} ({span.replace('%', '')})" for mean, span in both]
            rows.append([contrast.title, part, str(found.pairs), *shares])
    return grid_of(table, rows)


def runs_table(evaluation: Evaluation) -> Table:
    table = grid("Run by run", "", "SFT gold", "PPO gold", "95 %", "labelers", "95 %", "KL")
    rows = []
    for name, of_run in evaluation.by_run.items():
        gold, wins = of_run["gold"], of_run["wins/heldout"]["ppo"]
        kl = decimal(of_run["kl"]["ppo"].mean, 1)
        rows.append([name, decimal(gold["sft"].mean), *cells(gold["ppo"]), *cells(wins, percent), kl])
    return grid_of(table, rows)


def novel_table(evaluation: PooledEvaluation) -> Table:
    table = grid("Gold where names or phrasings are new", "new (prompts)", *STAGES, "95 %")
    for name, group in evaluation.novel.items():
        base, sft, ppo = group.gold.values()
        table.add_row(f"{name} ({group.prompts})", decimal(base.mean), decimal(sft.mean), *cells(ppo))
    return table


if __name__ == "__main__":
    run(main)
