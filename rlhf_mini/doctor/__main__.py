"""Checks the stages of a run, one after another, and says what to try where a check fails.

    python -m rlhf_mini.doctor                # runs/default
    python -m rlhf_mini.doctor runs/greedy    # another run

It reads stage.json, metrics.jsonl and compare.json; it loads no model and changes nothing. It also works while a stage
is running, and after one has stopped. One line for each check:

    pass  the metric is within its bounds
    warn  worth a look: the result may be worse than it could be
    fail  something is broken, or the result is meaningless
    todo  there is nothing to check yet; the line says what to run

Fix the stages in order: a fault in SFT or RM causes faults in PPO. The bounds fit the mini world's recipe and leave
room: the runs in docs/results.md are within them. With another reward or other data there can be good reasons to be
outside. The exit status is 0 if nothing failed, 1 if something did, 2 if the command is wrong.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlhf_mini.core.checkpoints import how_to_make, known_by, read_stage_json
from rlhf_mini.core.console import console, printable, run
from rlhf_mini.doctor import checks
from rlhf_mini.doctor.checks import Finding
from rlhf_mini.doctor.outputs import StageOutput, read_comparison, read_stage
from rlhf_mini.evaluation.runs import foreign_base, tool_command

COLOURS = {"pass": "green", "warn": "yellow", "fail": "bold red", "todo": "dim"}


# --- the checks of each stage ----------------------------------------------------------------------------------------


def check_sft(sft: StageOutput, run_dir: Path) -> list[Finding | None]:
    losses = sft.series("eval_loss")
    return [checks.validation_loss(losses), checks.overfitted_loss(sft.series("loss/demonstrations"), losses)]


def check_rm(rm: StageOutput, run_dir: Path) -> list[Finding | None]:
    # Judged on the labelers it was trained on: by held-out rankings if it was given rankings, else by simulated ones.
    held_out = rm.share("accuracy/rankings")
    given = bool(rm.number("rankings_held_out"))
    accuracy = held_out if given else rm.share("accuracy/training")
    agreement = None if given else rm.share("agreement/training")
    share = accuracy.mean if accuracy else None
    among_labelers = agreement.mean if agreement else None
    return [
        check_parent("rm", rm, "sft", run_dir),
        checks.accuracy(accuracy, among_labelers),
        checks.below_agreement(share, among_labelers),
        checks.overfitted_accuracy(rm.series("accuracy"), held_out.mean if held_out else None),
        checks.reading(rm.share("content/own_answer/seen"), rm.share("content/other_kind/seen")),
        checks.score_spread(rm.number("score_std")),
    ]


def check_ppo(ppo: StageOutput, run_dir: Path) -> list[Finding | None]:
    kl, lengths = ppo.series("objective/kl"), ppo.series("response/length")
    # Older runs did not log the entropy of the responses; that of the distributions is close to it.
    of_responses, of_distributions = ppo.series("objective/entropy"), ppo.series("policy/entropy")
    sampled = [e / n for e, n in zip(of_responses, lengths, strict=False) if n > 0]
    entropy = sampled or of_distributions
    scores, stds = ppo.series("objective/scores"), ppo.series("objective/scores_std")
    # `compare` scores with the run's reward model, which says nothing about a PPO run with another reward, and asks
    # about the mini world, which other people's models have never read of.
    uses_rm = not ppo.option("reward", "")
    comparable = uses_rm and ppo.path.name == "ppo" and foreign_base(run_dir) is None
    return [
        check_parent("ppo", ppo, "sft", run_dir),
        check_parent("ppo", ppo, "rm", run_dir) if uses_rm else None,
        checks.first_kl(kl),
        checks.first_ratio(ppo.series("policy/first_ratio_error"), ppo.option("precision", "no")),
        checks.sampling(sampled, of_distributions),
        checks.kl_sign(kl),
        checks.kl_size(kl, ppo.option("max_kl", 0.0)),
        checks.kl_controller(ppo.series("objective/kl_coef"), kl, ppo.option("kl_target", 0.0)),
        checks.policy_moved(kl),
        checks.clip_fraction(ppo.series("policy/clip_fraction")),
        checks.explained_variance(ppo.series("value/explained_variance"), stds),
        checks.entropy(entropy),
        checks.eos_rate(ppo.series("response/eos_rate")),
        checks.response_length(lengths),
        checks.score_gain(scores, stds),
        checks.gold(read_comparison(run_dir), ppo.sha256, tool_command(run_dir, "compare")) if comparable else None,
    ]


def check_parent(stage: str, output: StageOutput, parent: str, run_dir: Path) -> Finding | None:
    """Whether `stage` was trained from the `parent` checkpoint that is in the run now."""
    used, now = output.built_on(parent), known_by(read_stage_json(run_dir / parent))
    current = next((checksum for checksum in now if checksum in used), now[0] if now else None)
    return checks.same_checkpoint(parent, used, current, how_to_make(output.path, stage))


Checks = Callable[[StageOutput, Path], list[Finding | None]]
STAGES: dict[str, tuple[str, Checks]] = {
    "sft": ("supervised fine-tuning on demonstrations", check_sft),
    "rm": ("reward model, trained on rankings", check_rm),
    "ppo": ("PPO against the reward", check_ppo),
}


def check_stage(run_dir: Path, name: str, output: StageOutput | None) -> list[Finding]:
    """All findings on one stage, in the order of the checks."""
    if output is None:
        return [Finding("todo", "", f"no checkpoint yet: {how_to_make(run_dir / name, name)}")]
    stopped = printable(output.stopped) if output.stopped else None
    general = [
        checks.finished(bool(output.info), stopped, how_to_make(output.path, name)),
        checks.finite_metrics(output.lines),
        checks.learning_rate(output.series("learning_rate")),
    ]
    _, check = STAGES[name]
    return [finding for finding in [*general, *check(output, run_dir)] if finding]


# --- the command -----------------------------------------------------------------------------------------------------


def show(name: str, output: StageOutput | None, findings: Sequence[Finding]) -> None:
    """Prints the findings on one stage as a table, under a heading."""
    title, _ = STAGES[name]
    heading = f"{name}: {title}"
    if output is not None:
        seconds = f", {output.info['seconds']:.0f} s" if "seconds" in output.info else ""
        heading += f", {output.step} {'iterations' if name == 'ppo' else 'steps'}{seconds} ({output.path})"
    console.print(Text(f"\n{heading}", style="bold"), soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=6, justify="right")
    table.add_column(min_width=15)
    for finding in findings:
        text = Text(finding.text + (f"\ntry: {finding.advice}" if finding.advice else ""))
        table.add_row(Text(finding.level, style=COLOURS[finding.level]), finding.name, text)
    console.print(table)


def diagnose(run_dir: Path) -> bool:
    """Prints the findings on all stages. True if none of them failed."""
    levels: list[str] = []
    for name in STAGES:
        output = read_stage(run_dir, name)
        findings = check_stage(run_dir, name, output)
        show(name, output, findings)
        levels += [finding.level for finding in findings]
    console.print(f"\n{run_dir}: {', '.join(f'{levels.count(level)} {level}' for level in COLOURS)}", soft_wrap=True)
    return "fail" not in levels


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_mini.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", nargs="?", type=Path, default=Path("runs/default"), metavar="RUN_DIR",
                        help="the run's folder, which holds sft, rm and ppo (default: runs/default)")  # fmt: skip
    run_dir = parser.parse_args().run_dir
    if not run_dir.is_dir():
        parser.error(f"there is no folder {run_dir}: {how_to_make(run_dir / 'sft', 'sft')}, or name another run")
    if (run_dir / "stage.json").is_file():
        parser.error(f"{run_dir} is the folder of a stage: name the run's folder, {run_dir.parent}")
    sys.exit(0 if diagnose(run_dir) else 1)


if __name__ == "__main__":
    run(main)
