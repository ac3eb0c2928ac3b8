"""Compares what base, SFT and PPO say to the same prompts: side by side, and measured.

    python -m rlhf_mini.evaluation.compare                                 # runs/default, on data/prompts/test.jsonl
    python -m rlhf_mini.evaluation.compare --prompt "Name three fruits."   # a prompt of your own

Each stage gives one response to each prompt. The base gets the bare instruction as plain text; SFT and PPO get it
through the chat template. What to inspect: the responses side by side first, then the tables, then compare.jsonl in the
run's folder, to look for yourself where reward and gold disagree. A win rate is against SFT; a tie counts one half.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from rich.table import Table
from rich.text import Text

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError, console, printable, run
from rlhf_mini.core.examples import Demonstration, Prompt, read_demonstrations, read_prompts
from rlhf_mini.core.files import write_json, write_jsonl
from rlhf_mini.core.options import RunOptions, Seed, command_line, option, options, parse_options
from rlhf_mini.core.rankings import load_labelers
from rlhf_mini.evaluation import summary as summaries
from rlhf_mini.evaluation.answers import Answer, Row, mixed
from rlhf_mini.evaluation.runs import find_checkpoints, measuring, provenance
from rlhf_mini.evaluation.schema import Group, Spent, Summary
from rlhf_mini.evaluation.tables import cells, decimal, grid, grid_of, percent
from rlhf_mini.world.gold import WEIGHTS

if TYPE_CHECKING:  # imports torch, for which --help and early mistakes should not wait
    from rlhf_mini.evaluation.responses import Sampling, Stage

TITLES = {  # of the estimates in compare.json's "headline"
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
    "rm/ceiling_heldout": "gold's accuracy on the same pairs, the ceiling",
    "rm/agreement_heldout": "held-out labelers' own agreement",
    "rm/gap_heldout": "RM accuracy minus their agreement",
    "kl": "PPO's KL to SFT, nats",
    "eos": "PPO's responses that end by themselves",
    "length_ratio": "PPO's length over a demonstration's",
}
SIDE_BY_SIDE = 60  # columns of the terminal below which the responses stand below each other
DECIMAL = ("gold", "rm_score", "kl", "length")  # how their names begin; the others are shares


@options
class CompareOptions(RunOptions):
    """Options of `python -m rlhf_mini.evaluation.compare`."""

    base: str = option("data/base", "The pretrained checkpoint that SFT started from.")
    seed: Seed = option(0, "Seed of the responses, of the prompts shown and of the bootstrap.")

    prompt: str = option("", "Compare responses to this text only; prints them and writes nothing.")
    split: str = option("data/prompts/test.jsonl", "JSONL of prompts that SFT, RM and PPO did not train on.")
    num_prompts: NonNegativeInt = option(0, "Use only the first NUM_PROMPTS of them (0: all).")
    show: NonNegativeInt = option(8, "Prompts to show with their responses, from all use cases (0: none).")

    max_new_tokens: PositiveInt = option(48, "Tokens after which a response is truncated.")
    temperature: NonNegativeFloat = option(0.7, "Temperature of the responses; 0 decodes greedily.")

    demonstrations: str = option("data/demonstrations.jsonl", "JSONL of demonstrations, to compare lengths with.")
    labelers: str = option(
        "rlhf_mini.world.labelers:heldout_labelers",
        "package.module:function that returns the judges: labelers whose rankings train nothing.",
    )
    num_rm_prompts: PositiveInt = option(300, "Prompts on which the reward model is compared with those labelers.")
    num_responses: Annotated[int, Ge(2)] = option(4, "SFT responses ranked for each of these prompts.")

    def __post_init__(self) -> None:
        if self.prompt and not self.prompt.strip():
            raise UserError("--prompt is blank: give it a text to respond to")

    def sampling(self) -> "Sampling":
        from rlhf_mini.evaluation.responses import Sampling

        return Sampling(self.max_new_tokens, self.temperature, self.seed)


def main() -> None:
    options = parse_options(
        CompareOptions,
        prog="python -m rlhf_mini.evaluation.compare",
        description="Compares what base, SFT and PPO say to the same prompts: side by side, and measured.",
    )
    compare(options, command_line("python -m rlhf_mini.evaluation.compare"))


def compare(options: CompareOptions, command: str) -> None:
    """Samples, judges, prints and writes runs/<run>/compare.jsonl and compare.json; `command` goes into the latter."""
    checkpoints = find_checkpoints(options.run_dir, options.base)
    examples = [own_prompt(options)] if options.prompt else read_prompts(options.split)[: options.num_prompts or None]
    demonstrations = [] if options.prompt else read_demonstrations(options.demonstrations)

    from rlhf_mini.evaluation import responses  # imports torch

    stages, reward_model = responses.load_stages(checkpoints)
    if options.prompt:
        judges = responses.load_judges(options.labelers)
        for row in responses.collect(stages, reward_model, examples, judges, options.sampling()):
            show_responses(row)
        return
    with measuring(options.run_dir):
        rows, summary = measure(options, command, checkpoints, stages, reward_model, examples, demonstrations)
        for row in mixed(rows, lambda row: row.example.get("use_case"), options.show, options.seed):
            show_responses(row)
        show_summary(summary)
        write(options, rows, summary)


def measure(
    options: CompareOptions, command: str, checkpoints: dict[str, Checkpoint], stages: "dict[str, Stage]",
    reward_model: "Stage", examples: Sequence[Prompt], demonstrations: Sequence[Demonstration],
) -> tuple[list[Row], Summary]:  # fmt: skip
    """The rows of compare.jsonl and the content of compare.json."""
    from rlhf_mini.evaluation import responses

    sampling = options.sampling()
    rows = responses.collect(stages, reward_model, examples, responses.load_judges(options.labelers), sampling)
    lengths = responses.demonstration_lengths(demonstrations, stages["sft"].tokenizer)
    groups = summaries.grouped(rows, lengths, options.seed)
    counts = responses.reward_model_counts(
        stages["sft"], reward_model, examples[: options.num_rm_prompts], load_labelers(options.labelers), sampling,
        options.num_responses,
    )  # fmt: skip
    summary = Summary(
        headline=summaries.headline(groups, summaries.reward_model_accuracy(counts, options.seed)),
        use_cases_below_sft=summaries.below_sft(groups),
        cost={name: Spent(c.info["seconds"], c.info["peak_memory_mb"]) for name, c in checkpoints.items()},
        groups=groups,
        demonstrated_tokens=lengths,
        provenance=provenance(options, command, checkpoints),
    )
    return rows, summary


def write(options: CompareOptions, rows: Sequence[Row], summary: Summary) -> None:
    """runs/<run>/compare.jsonl and compare.json."""
    write_jsonl(options.run_dir / "compare.jsonl", (row.to_json() for row in rows))
    write_json(options.run_dir / "compare.json", summary)
    console.print(f"compare: {options.run_dir / 'compare.jsonl'} and compare.json written", soft_wrap=True)


def own_prompt(options: CompareOptions) -> Prompt:
    """The example for --prompt; it has a check, and so a gold score, if it is a prompt in the split's folder."""
    prompt = [{"role": "user", "content": options.prompt}]
    for path in sorted(Path(options.split).parent.glob("*.jsonl")):
        with suppress(UserError):  # other files may lie beside the prompts
            for example in read_prompts(path):
                if example["prompt"] == prompt:
                    return example
    return {"prompt": prompt}


# --- the console -----------------------------------------------------------------------------------------------------


def show_responses(row: Row) -> None:
    """A prompt with the stages' responses side by side."""
    console.print()
    about = [f"{key.replace('_', ' ')}: {row.example[key]}" for key in ("use_case", "novel") if key in row.example]
    for message in row.prompt:
        console.print(Text(f"{message['role']}: ", style="bold").append(printable(message["content"])))
    if console.width < SIDE_BY_SIDE:
        for name, answer in row.answers.items():
            console.print(Text(f"{name}: ", style="bold").append(printable(answer.response), style="not bold"))
            console.print(Text(("" if answer.ended else "(truncated) ") + scores_line(answer), style="dim"))
        return
    table = Table(*row.answers, expand=True, title=Text(", ".join(about)) if about else None, title_justify="left")
    for column in table.columns:
        column.ratio = 1
    answers = row.answers.values()
    table.add_row(
        *(Text(printable(a.response)) + Text("" if a.ended else " (truncated)", style="dim") for a in answers)
    )
    table.add_section()
    table.add_row(*(Text(scores_line(answer), style="dim") for answer in answers))
    console.print(table)


def scores_line(answer: Answer) -> str:
    gold = "no gold" if answer.gold is None else f"gold {answer.gold:.2f}"
    return f"RM {answer.rm_score:+.2f}, {gold}"


def show_summary(summary: Summary) -> None:
    """The tables: gold and its parts, comparison with SFT, new phrasings and entities, and the headline."""
    groups = summary.groups
    use_cases = [name for name in groups if name == "all" or name.startswith("use_case/")]
    use_cases.sort(key=lambda name: -groups[name].prompts)
    novel = [name for name in groups if name.startswith("novel/")]
    console.print()
    console.print(gold_table(groups, use_cases))
    console.print(against_sft_table(groups, use_cases))
    if novel:
        console.print(novel_table(groups, novel))
    console.print(headline_table(summary))


def by_stage(
    table: Table, groups: dict[str, Group], names: Iterable[str], row: Callable[[dict[str, Estimate]], list[str]]
) -> Table:
    """Three rows for each group, one per stage, with what `row` makes of the stage's estimates."""
    for name in names:
        for number, (stage, estimates) in enumerate(groups[name].stages.items()):
            table.add_row(name.removeprefix("use_case/") if number == 0 else "", stage, *row(estimates))
        table.add_row()
    return table


def gold_table(groups: dict[str, Group], names: Iterable[str]) -> Table:
    title = "Gold score and its parts, means and 95 % interval over prompts"
    table = grid(title, "use case", "", "gold", "95 %", *WEIGHTS, left=2)
    return by_stage(table, groups, names, lambda e: [*cells(e["gold"]), *(decimal(e[part].mean) for part in WEIGHTS)])


def against_sft_table(groups: dict[str, Group], names: Iterable[str]) -> Table:
    title = "Win rate against SFT by held-out labelers and by gold, KL to SFT, length, eos"
    columns = ("labelers", "95 %", "gold", "95 %", "KL", "words", "x demo", "eos")
    return by_stage(
        grid(title, "use case", "", *columns, left=2),
        groups,
        names,
        lambda e: [
            *cells(e["wins/heldout"], percent),
            *cells(e["wins/gold"], percent),
            decimal(e["kl"].mean, 1),
            decimal(e["words"].mean, 1),
            decimal(e["length_ratio"].mean),
            percent(e["eos"].mean),
        ],
    )


def novel_table(groups: dict[str, Group], names: Iterable[str]) -> Table:
    title = "Gold on prompts whose entities, phrasings or both are new to SFT, RM and PPO"
    table = grid(title, "new (prompts)", "base", "95 %", "sft", "95 %", "ppo", "95 %", "ppo wins", "95 %")
    rows = []
    for name in names:
        base, sft, ppo = groups[name].stages.values()
        gold = [cell for stage in (base, sft, ppo) for cell in cells(stage["gold"])]
        label = f"{name.removeprefix('novel/')} ({groups[name].prompts})"
        rows.append([label, *gold, *cells(ppo["wins/heldout"], percent)])
    return grid_of(table, rows)


def headline_table(summary: Summary) -> Table:
    table = grid("Summary", "", "mean", "95 %")
    for name, estimate in summary.headline.items():
        table.add_row(TITLES[name], *cells(estimate, decimal if name.startswith(DECIMAL) else percent))
    table.add_row("use cases with PPO's gold below SFT's", ", ".join(summary.use_cases_below_sft) or "none")
    together = spent(summary.cost)
    table.add_row("SFT, RM and PPO took, s", f"{together.seconds:.0f}")
    table.add_row("their peak memory, MB", f"{together.peak_memory_mb:.0f}")
    return table


def spent(cost: dict[str, Spent]) -> Spent:
    """What SFT, RM and PPO cost together."""
    trained = [of_stage for stage, of_stage in cost.items() if stage != "base"]
    return Spent(sum(one.seconds for one in trained), max(one.peak_memory_mb for one in trained))


if __name__ == "__main__":
    run(main)
