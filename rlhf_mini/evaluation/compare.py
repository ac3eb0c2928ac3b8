"""Compares what base, SFT and PPO say to the same prompts: side by side, and measured.

    python -m rlhf_mini.evaluation.compare                                    # runs/default, on all of data/prompts/test.jsonl
    python -m rlhf_mini.evaluation.compare --prompt "Name three fruits."      # a prompt of one's own

Each stage gives one response to each prompt. The base gets the bare instruction as plain text, SFT and PPO get it
through the chat template. What to inspect: the responses side by side first, then the tables, then compare.jsonl in the
run's folder, to look for yourself where reward and gold disagree. A win rate is against SFT; a tie counts one half.
"""

import dataclasses
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_mini.core.checkpoints import Checkpoint, data_sha256, load_checkpoint, versions
from rlhf_mini.core.console import UserError, console, printable, run
from rlhf_mini.core.examples import Prompt, read_demonstrations, read_prompts
from rlhf_mini.core.files import plain, sha256, write_json, write_jsonl
from rlhf_mini.core.options import command_line, option, parse_options
from rlhf_mini.world.gold import WEIGHTS

FORMAT = 1  # of compare.json and compare.jsonl
TITLES = {  # of the figures in compare.json's "headline"
    "sft_beats_base/heldout": "SFT beats base, held-out labelers",
    "sft_beats_base/gold": "SFT beats base, gold",
    "ppo_beats_sft/heldout": "PPO beats SFT, held-out labelers",
    "ppo_beats_sft/gold": "PPO beats SFT, gold",
    "gold/base": "base gold",
    "gold/sft": "SFT gold",
    "gold/ppo": "PPO gold",
    "rm_score/sft": "SFT's RM score",
    "rm_score/ppo": "PPO's RM score",
    "rm/accuracy_heldout": "RM accuracy, held-out labelers' pairs",
    "rm/agreement_heldout": "held-out labelers' own agreement",
    "rm/gap_heldout": "RM accuracy minus their agreement",
    "kl": "PPO's KL to SFT, nats",
    "eos": "PPO's responses that end by themselves",
    "length_ratio": "PPO's length over a demonstration's",
}
DECIMAL = ("gold", "rm_score", "kl", "length")  # how their names begin; the others are shares


@dataclass
class CompareOptions:
    """Options of `python -m rlhf_mini.evaluation.compare`."""

    run: str = option("default", "Name of the run; its checkpoints are in RUNS_DIR/RUN.")
    runs_dir: str = option("runs", "Folder of all runs.")
    base: str = option("data/base", "The pretrained checkpoint that SFT started from.")
    seed: int = option(0, "Seed of the responses, of the prompts shown and of the bootstrap.")

    prompt: str = option("", "Compare responses to this text only; prints them and writes nothing.")
    split: str = option("data/prompts/test.jsonl", "JSONL of prompts that SFT, RM and PPO did not train on.")
    num_prompts: int = option(0, "Take only so many of them, from the first (0: all).")
    show: int = option(8, "Prompts to show with their responses, drawn from all use cases (0: none).")

    max_new_tokens: int = option(48, "Tokens after which a response is cut.")
    temperature: float = option(0.7, "Temperature of the responses; 0 takes the likeliest token each time.")

    demonstrations: str = option("data/demonstrations.jsonl", "JSONL of demonstrations, to compare lengths with.")
    labelers: str = option(
        "rlhf_mini.world.labelers:heldout_labelers",
        "package.module:function that gives the judges: labelers whose rankings train nothing.",
    )
    num_rm_prompts: int = option(300, "Prompts on which the reward model is measured against those labelers.")
    num_responses: int = option(4, "SFT responses ranked for each of these prompts.")

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("num_rm_prompts", 1), ("num_responses", 2)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("seed", "num_prompts", "show", "temperature"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} must not be negative, but is {getattr(self, name)}")
        if self.prompt and not self.prompt.strip():
            raise UserError("--prompt is blank: give it a text to respond to")
        if any(
            "\ud800" <= character <= "\udfff" for character in self.prompt
        ):  # how Python reads bytes that are no text
            raise UserError("--prompt is not UTF-8 text")

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run


def main() -> None:
    options = parse_options(
        CompareOptions,
        prog="python -m rlhf_mini.evaluation.compare",
        description="Compares what base, SFT and PPO say to the same prompts: side by side, and measured.",
    )
    compare(options, command_line("python -m rlhf_mini.evaluation.compare"))


def compare(options: CompareOptions, command: str) -> None:
    """Samples, judges, prints and writes runs/<run>/compare.jsonl and compare.json; `command` goes into the latter."""
    checkpoints = find_checkpoints(options)
    records = [own_prompt(options)] if options.prompt else read_split(options)
    demonstrations = [] if options.prompt else read_demonstrations(options.demonstrations)

    # It imports torch and transformers; --help and what is missing should not wait for them.
    from rlhf_mini.evaluation import measures

    models = measures.load_stages(checkpoints)
    if options.prompt:
        for row in measures.collect(*models, records, measures.judges(options.labelers), **sampling(options)):
            show_responses(row)
        return
    rows, summary = measure(options, command, checkpoints, models, records, demonstrations)
    for row in spread(rows, options.show, options.seed):
        show_responses(row)
    show_summary(summary)
    write(options, rows, summary)


def measure(
    options: CompareOptions, command: str, checkpoints: dict[str, Checkpoint], models: Any, records: Sequence[Prompt],
    demonstrations: Sequence[Prompt],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """The lines of compare.jsonl and the content of compare.json; `models` is what `measures.load_stages` gives."""
    from rlhf_mini.evaluation import measures

    stages, reward_model = models
    rows = measures.collect(stages, reward_model, records, measures.judges(options.labelers), **sampling(options))
    lengths = measures.demonstrated(demonstrations, stages["sft"].tokenizer)
    groups = measures.summarize(rows, lengths, options.seed)
    of_rm = measures.reward_model_accuracy(
        stages["sft"],
        reward_model,
        records[: options.num_rm_prompts],
        measures.load_labelers(options.labelers),
        num_responses=options.num_responses,
        **sampling(options),
    )
    summary = {
        "format": FORMAT,
        "headline": measures.headline(groups, of_rm),
        "use_cases_below_sft": measures.below_sft(groups),
        "cost": {name: {key: c.info[key] for key in ("seconds", "peak_memory_mb")} for name, c in checkpoints.items()},
        "groups": groups,
        "demonstrated_tokens": lengths,
        "provenance": provenance(options, command, checkpoints),
    }
    return rows, summary


def write(options: CompareOptions, rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """runs/<run>/compare.jsonl and compare.json."""
    write_jsonl(options.run_dir / "compare.jsonl", (plain(row) for row in rows))
    write_json(options.run_dir / "compare.json", summary)
    console.print(f"compare: {options.run_dir / 'compare.jsonl'} and compare.json written", soft_wrap=True)


# --- prompts and files -----------------------------------------------------------------------------------------------


def find_checkpoints(options: CompareOptions) -> dict[str, Checkpoint]:
    """Base, SFT, RM and PPO by name.

    Raises:
        UserError: one of them is missing, broken, or not made from the one before it.
    """
    found = {"base": load_checkpoint(options.base, "base")}
    for name, parent in (("sft", "base"), ("rm", "sft"), ("ppo", "sft")):
        found[name] = load_checkpoint(options.run_dir / name, name, of=found[parent])
    if not found["ppo"].info["options"].get("reward"):  # with --reward it was trained on something else, on purpose
        load_checkpoint(options.run_dir / "ppo", "ppo", of=found["rm"])
    return found


def read_split(options: CompareOptions) -> list[Prompt]:
    """The prompts to compare on."""
    return read_prompts(options.split)[: options.num_prompts or None]


def sampling(options: CompareOptions) -> dict[str, Any]:
    """How responses are sampled."""
    return {key: getattr(options, key) for key in ("max_new_tokens", "temperature", "seed")}


def own_prompt(options: CompareOptions) -> Prompt:
    """A record for --prompt; it has a check, and so a gold score, if it is one of the prompts in the split's folder."""
    prompt = [{"role": "user", "content": options.prompt}]
    for path in sorted(Path(options.split).parent.glob("*.jsonl")):
        for record in read_prompts(path):
            if record["prompt"] == prompt:
                return record
    return {"prompt": prompt}


def spread(rows: Sequence[dict[str, Any]], number: int, seed: int) -> list[dict[str, Any]]:
    """`number` rows drawn by `seed`, one of each use case in turn."""
    by_use_case: dict[Any, list[dict[str, Any]]] = {}
    for row in random.Random(seed).sample(list(rows), len(rows)):
        by_use_case.setdefault(row.get("use_case"), []).append(row)
    in_turn = [row for one_each in zip_longest(*by_use_case.values()) for row in one_each if row is not None]
    return in_turn[:number]


def provenance(options: CompareOptions, command: str, checkpoints: dict[str, Checkpoint]) -> dict[str, Any]:
    """What these figures were measured on, and how to measure them again."""
    return {
        "command": command,
        "options": dataclasses.asdict(options),
        "checkpoints": {
            name: {"path": str(c.path), "sha256": c.sha256, "seed": c.info["seed"]} for name, c in checkpoints.items()
        },
        "split_sha256": sha256(Path(options.split)),
        "data_sha256": data_sha256(),
        "versions": versions(),
    }


# --- the console -----------------------------------------------------------------------------------------------------


def show_responses(row: dict[str, Any]) -> None:
    """A prompt with the stages' responses side by side."""
    console.print()
    about = [f"{key.replace('_', ' ')}: {row[key]}" for key in ("use_case", "novel") if key in row]
    for message in row["prompt"]:
        console.print(Text(f"{message['role']}: ", style="bold").append(printable(message["content"])))
    table = Table(*row["stages"], expand=True, title=Text(", ".join(about)) if about else None, title_justify="left")
    for column in table.columns:
        column.ratio = 1
    answers = row["stages"].values()
    table.add_row(
        *(Text(printable(a["response"])) + Text("" if a["ended"] else " (cut)", style="dim") for a in answers)
    )
    table.add_section()
    table.add_row(*(Text(scores_line(answer), style="dim") for answer in answers))
    console.print(table)


def scores_line(answer: dict[str, Any]) -> str:
    gold = "no gold" if answer["gold"] is None else f"gold {answer['gold']:.2f}"
    return f"RM {answer['rm_score']:+.2f}, {gold}"


def show_summary(summary: dict[str, Any]) -> None:
    """The tables: gold and its parts, comparison with SFT, unseen phrasings and entities, and the headline."""
    groups = summary["groups"]
    use_cases = [group for group in groups if group == "all" or group.startswith("use_case/")]
    use_cases.sort(key=lambda group: -groups[group]["prompts"])
    novel = [group for group in groups if group.startswith("novel/")]
    console.print()
    console.print(gold_table(groups, use_cases))
    console.print(against_sft_table(groups, use_cases))
    if novel:
        console.print(novel_table(groups, novel))
    console.print(headline_table(summary))


def grid(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are names and whose others are numbers."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return table


def by_stage(table: Table, groups: dict[str, Any], names: Iterable[str], cells: Any) -> Table:
    """Three rows for each group, one a stage, with what `cells` makes of the stage's figures."""
    for group in names:
        for number, (stage, figures) in enumerate(groups[group]["stages"].items()):
            table.add_row(group.removeprefix("use_case/") if number == 0 else "", stage, *cells(figures))
        table.add_row()
    return table


def gold_table(groups: dict[str, Any], names: Iterable[str]) -> Table:
    title = "Gold score and its parts, means and 95 % interval over prompts"
    table = grid(title, "use case", "", "gold", "95 %", *WEIGHTS, left=2)
    return by_stage(table, groups, names, lambda f: [*both(f["gold"]), *(decimal(f[part]) for part in WEIGHTS)])


def against_sft_table(groups: dict[str, Any], names: Iterable[str]) -> Table:
    title = "Win rate against SFT by held-out labelers and by gold, KL to SFT, length, ended"
    columns = ("labelers", "95 %", "gold", "95 %", "KL", "words", "x demo", "eos")
    return by_stage(
        grid(title, "use case", "", *columns, left=2),
        groups,
        names,
        lambda f: [
            *both(f["wins/heldout"], percent),
            *both(f["wins/gold"], percent),
            decimal(f["kl"], 1),
            decimal(f["words"], 1),
            decimal(f["length_ratio"]),
            percent(f["eos"]),
        ],
    )


def novel_table(groups: dict[str, Any], names: Iterable[str]) -> Table:
    title = "Gold on prompts whose entities, phrasings or both are new to SFT, RM and PPO"
    table = grid(title, "new (prompts)", "base", "95 %", "sft", "95 %", "ppo", "95 %", "ppo wins", "95 %")
    for group in names:
        base, sft, ppo = groups[group]["stages"].values()
        gold = [cell for figures in (base, sft, ppo) for cell in both(figures["gold"])]
        label = f"{group.removeprefix('novel/')} ({groups[group]['prompts']})"
        table.add_row(label, *gold, *both(ppo["wins/heldout"], percent))
    table.add_row()
    return table


def headline_table(summary: dict[str, Any]) -> Table:
    table = grid("Summary", "", "mean", "95 %")
    for name, figure in summary["headline"].items():
        table.add_row(TITLES[name], *both(figure, decimal if name.startswith(DECIMAL) else percent))
    table.add_row("use cases with PPO's gold below SFT's", ", ".join(summary["use_cases_below_sft"]) or "none")
    seconds, memory = spent(summary)
    table.add_row("SFT, RM and PPO took, s", f"{seconds:.0f}")
    table.add_row("their peak memory, MB", f"{memory:.0f}")
    return table


def spent(summary: dict[str, Any]) -> tuple[float, float]:
    """What SFT, RM and PPO cost together: seconds, and the peak of their memory in MB."""
    trained = [cost for stage, cost in summary["cost"].items() if stage != "base"]
    return sum(cost["seconds"] for cost in trained), max(cost["peak_memory_mb"] for cost in trained)


def both(figure: dict[str, float], form: Any = None) -> tuple[str, str]:
    """Mean and interval as two cells."""
    form = form or decimal
    low, high = (form({"mean": figure[end]}) for end in ("low", "high"))
    return form(figure), "" if low == "-" else f"{low} to {high}" if low.startswith("-") else f"{low}-{high}"


def decimal(figure: dict[str, float], digits: int = 2) -> str:
    return "-" if figure["mean"] != figure["mean"] else f"{figure['mean']:.{digits}f}"


def percent(figure: dict[str, float]) -> str:
    return "-" if figure["mean"] != figure["mean"] else f"{100 * figure['mean']:.0f}%"


if __name__ == "__main__":
    run(main)
