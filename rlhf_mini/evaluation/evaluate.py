"""Evaluates base, SFT and PPO of one run, or of several that differ in their seed, on the test prompts.

    python -m rlhf_mini.evaluation.evaluate                                   # runs/default
    python -m rlhf_mini.evaluation.evaluate --runs seed0,seed1,seed2          # and over seeds: runs/evaluate.json

It does what `rlhf_mini.evaluation.compare` does for each run, and adds win rates of every pair by three judges (gold, the
held-out labelers, the run's own reward model), the same at equal length, Bradley-Terry ratings over all pairs, and
probes: truth, invention, harm, manners, and what the stages forgot of the base. Judges never learn which stage wrote
what they judge.

What to inspect: the ladder first. The judge that PPO was trained on (rm) should like PPO more than the others do, but
not against them. Then the probes: that is where a better score hides what became worse.

Runs that differ in nothing but the seed are also taken together, with intervals over prompts and over runs. With three
runs the part that comes from seeds is too narrow: where seeds matter more than prompts, such an interval holds the
truth in three cases of four, not in 95 of 100. Runs that differ in more are rated side by side.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.examples import read_demonstrations
from rlhf_mini.core.files import write_json
from rlhf_mini.core.options import command_line, option, parse_options
from rlhf_mini.evaluation import compare
from rlhf_mini.evaluation.compare import CompareOptions, both, decimal, find_checkpoints, grid, percent, read_split

FORMAT = 1  # of evaluate.json
# By the names they have in evaluate.json, those that people see.
JUDGES = {"gold": "gold score", "heldout": "held-out labelers", "rm": "reward model"}
PAIRS = {"sft/base": "SFT over base", "ppo/sft": "PPO over SFT", "ppo/base": "PPO over base"}
SAME = ("sft", "rm", "ppo")  # stages whose options must agree, but for the seed, where runs are taken together


@dataclass
class EvaluateOptions:
    """Options of `python -m rlhf_mini.evaluation.evaluate`."""

    run: str = option("default", "Name of the run; its checkpoints are in RUNS_DIR/RUN.")
    runs: str = option("", "Names of several runs, with commas between: each is evaluated, and all of them together.")
    runs_dir: str = option("runs", "Folder of all runs.")
    base: str = option("data/base", "The pretrained checkpoint that SFT started from.")
    out: str = option("", "Where the figures of several runs together go (default: RUNS_DIR/evaluate.json).")
    seed: int = option(0, "Seed of the responses and of the bootstrap.")

    split: str = option("data/prompts/test.jsonl", "JSONL of prompts that SFT, RM and PPO did not train on.")
    num_prompts: int = option(0, "Take only so many of them, from the first (0: all).")
    max_new_tokens: int = option(48, "Tokens after which a response is cut.")
    temperature: float = option(0.7, "Temperature of the responses; 0 takes the likeliest token each time.")
    labelers: str = option(
        "rlhf_mini.world.labelers:heldout_labelers",
        "package.module:function that gives the judges: labelers whose rankings train nothing.",
    )
    samples: int = option(4, "Responses to each prompt of the probes that have prompts of their own.")

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names) or not all(self.names):
            raise UserError(f"--runs must name different runs, with commas between, not {self.runs!r}")
        if self.samples < 1:
            raise UserError(f"--samples must be at least 1, not {self.samples}")
        for name in self.names:
            self.of_run(name)  # UserError for the options that are compare's, too

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.runs.split(",")] if self.runs else [self.run]

    def of_run(self, name: str) -> CompareOptions:
        shared = ("runs_dir", "base", "seed", "split", "num_prompts", "max_new_tokens", "temperature", "labelers")
        return CompareOptions(run=name, **{key: getattr(self, key) for key in shared})


def main() -> None:
    options = parse_options(
        EvaluateOptions,
        prog="python -m rlhf_mini.evaluation.evaluate",
        description="Evaluates base, SFT and PPO of one or several runs: judges, ratings, probes, intervals.",
    )
    evaluate(options, command_line("python -m rlhf_mini.evaluation.evaluate"))


def evaluate(options: EvaluateOptions, command: str) -> None:
    """Writes runs/<run>/compare.jsonl, compare.json and evaluate.json of each run, and --out if there are several."""
    found = {name: find_checkpoints(options.of_run(name)) for name in options.names}
    alike = are_alike(found)
    records = read_split(options.of_run(options.run))
    demonstrations = read_demonstrations(CompareOptions.demonstrations)

    # It imports torch and transformers; --help and what is missing should not wait for them.
    from rlhf_mini.evaluation import measures, probes
    from rlhf_mini.evaluation import summary as evaluation

    measured = {}
    for name, checkpoints in found.items():
        if len(found) > 1:
            console.print(f"evaluate: {name}")
        of_run = options.of_run(name)
        models = measures.load_stages(checkpoints)
        rows, summary = compare.measure(of_run, command, checkpoints, models, records, demonstrations)
        values = probes.measure(models[0], rows, options.samples, **compare.sampling(of_run))
        compare.write(of_run, rows, summary)
        measured[name] = evaluation.Measured(rows, summary, values)
        alone = evaluation.summarize({name: measured[name]}, records, options.labelers, options.seed)
        together = {"format": FORMAT, **alone, "options": asdict(options)}
        write_json(of_run.run_dir / "evaluate.json", together)
    if len(measured) > 1:
        combine = evaluation.summarize if alike else evaluation.rate_side_by_side
        figures = combine(measured, records, options.labelers, options.seed)
        together = {"format": FORMAT, **figures, "options": asdict(options)}
    show(together)
    for name in measured:
        console.print(f"evaluate: {Path(options.runs_dir) / name / 'evaluate.json'} written", soft_wrap=True)
    if len(measured) > 1:
        out = Path(options.out or Path(options.runs_dir) / "evaluate.json")
        write_json(out, together)
        console.print(f"evaluate: {out} written", soft_wrap=True)


def are_alike(found: dict[str, dict[str, Checkpoint]]) -> bool:
    """Whether runs differ in nothing but the seed, and so may be taken together.

    UserError if two of them are the same: copies would count as evidence.
    """
    weights: dict[str, str] = {}
    for name, checkpoints in found.items():
        same = weights.setdefault(checkpoints["ppo"].sha256, name)
        if same != name:
            raise UserError(f"{same} and {name} have the same PPO weights: name each run once")
    aside = {"run", "runs_dir", "seed"}
    for stage in SAME:
        first, *others = (checkpoints[stage].info["options"] for checkpoints in found.values())
        for other in others:
            different = sorted(key for key in {*first, *other} - aside if first.get(key) != other.get(key))
            if different:
                names = ", ".join(different)
                console.print(
                    f"evaluate: the {stage} stages differ in {names}, so the runs are rated side by side",
                    soft_wrap=True,
                )
                return False
    return True


def show(summary: dict[str, Any]) -> None:
    """The tables: win rates, ratings, probes and the unseen."""
    console.print()
    if "win_rates" not in summary:
        console.print(ratings_table(summary))
        console.print(runs_table(summary))
        return
    console.print(wins_table(summary))
    console.print(ratings_table(summary))
    console.print(probes_table(summary))
    console.print(novel_table(summary))


def wins_table(summary: dict[str, Any]) -> Table:
    table = grid("Win rates, a tie counts one half", "", "judge", "wins", "95 %", "at equal length", left=2)
    for pair, title in PAIRS.items():
        for judge, name in JUDGES.items():
            figure, controlled = (summary[key][judge][pair] for key in ("win_rates", "length_controlled"))
            cells = [*both(figure, percent), percent(controlled)]
            table.add_row(title if judge == "gold" else "", name, *cells)
    table.add_row()
    return table


def ratings_table(summary: dict[str, Any]) -> Table:
    judges = summary["bradley_terry"]
    columns = [column for judge in judges for column in (JUDGES[judge], "95 %")]
    table = grid("Bradley-Terry ratings, Elo points over the base", "", *columns)
    for player in judges["gold"]:
        table.add_row(player, *(c for of in judges.values() for c in both(of[player], lambda f: decimal(f, 0))))
    table.add_row()
    return table


def probes_table(summary: dict[str, Any]) -> Table:
    table = grid("Probes, and which way is better", "", "", "base", "sft", "ppo", left=2)
    for probe in summary["probes"].values():
        form = percent if probe["unit"] == "share" else decimal
        cells = [
            f"{mean} ({span.replace('%', '')})" for mean, span in (both(f, form) for f in probe["stages"].values())
        ]
        table.add_row(
            "\N{UPWARDS ARROW}" if probe["better"] == "higher" else "\N{DOWNWARDS ARROW}", probe["title"], *cells
        )
    table.add_row()
    return table


def runs_table(summary: dict[str, Any]) -> Table:
    table = grid("Run by run", "", "SFT gold", "PPO gold", "95 %", "labelers", "95 %", "KL")
    for name, figures in summary["by_run"].items():
        gold, wins = figures["gold"], figures["wins/heldout"]["ppo"]
        cells = [decimal(gold["sft"]), *both(gold["ppo"]), *both(wins, percent), decimal(figures["kl"]["ppo"], 1)]
        table.add_row(name, *cells)
    table.add_row()
    return table


def novel_table(summary: dict[str, Any]) -> Table:
    table = grid("Gold where names or phrasings are new", "new (prompts)", "base", "sft", "ppo", "95 %")
    for name, group in summary["novel"].items():
        base, sft, ppo = group["gold"].values()
        table.add_row(f"{name} ({group['prompts']})", decimal(base), decimal(sft), *both(ppo))
    return table


def read(path: Path, make: str) -> dict[str, Any]:
    """An evaluate.json. UserError if it is not there yet; `make` is the command that makes it."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there yet: run `{make}`") from None
    if content.get("format") != FORMAT:
        raise UserError(f"{path} was written by another version of this project: run `{make}`")
    return content


if __name__ == "__main__":
    run(main)
