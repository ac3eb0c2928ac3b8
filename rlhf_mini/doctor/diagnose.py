"""Reads what the stages of a run wrote and says, stage by stage, what is well, what is wrong and what to try.

    python -m rlhf_mini.doctor                # runs/default
    python -m rlhf_mini.doctor runs/greedy    # another run, also while a stage is still working or after it was stopped

It reads stage.json, metrics.jsonl and compare.json, loads no model, and changes nothing. One line a check:

    pass  the figure lies where it should
    warn  worth a look: the result may be poorer than it need be
    fail  something is broken, or the result means nothing
    todo  there is nothing to judge yet; says what to run

Look at the stages in their order: a fault of SFT or RM makes faults in PPO. The bounds are those of the mini world's
recipe, with room: all three seeds of docs/results.md lie well within them. Another reward or other data may have good
reasons to lie outside. The exit status is 0 if nothing failed, 1 if something did, 2 if the command is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_mini.core.checkpoints import WEIGHTS, how_to_make, tool_command
from rlhf_mini.core.console import console, printable
from rlhf_mini.core.files import parse_object, read_json
from rlhf_mini.doctor import checks as diagnoses
from rlhf_mini.doctor.checks import Finding, verdict

COLOURS = {"pass": "green", "warn": "yellow", "fail": "bold red", "todo": "dim"}


# --- what the stages wrote -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What a stage has written: a checkpoint, what a stop kept, or what there is of one at work."""

    path: Path
    info: dict[str, Any]  # stage.json; {} if the stage is not finished
    lines: list[dict[str, Any]]  # metrics.jsonl

    def series(self, name: str) -> list[float]:
        """The finite values of a metric, step by step."""
        return [line[name] for line in self.lines if isinstance(line.get(name), (int, float))]

    def option(self, name: str, default: Any) -> Any:
        return self.info.get("options", {}).get(name, default)

    def figure(self, name: str) -> Any:
        return self.info.get("metrics", {}).get(name)


def read(run_dir: Path, stage: str) -> Written | None:
    """The latest of the checkpoint, the one at work and the one kept at a stop. None if there is none of them."""
    folders = [run_dir / f"{stage}{suffix}" for suffix in ("", ".partial", ".last_good")]
    files = [path for folder in folders for path in (folder / "metrics.jsonl", folder / "stage.json") if path.is_file()]
    if not files:
        return None
    folder = max(files, key=lambda path: path.stat().st_mtime).parent
    info, lines = read_json(folder / "stage.json"), []
    if (folder / "metrics.jsonl").is_file():
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # without a line that is being written
        lines = [parse_object(line, folder / "metrics.jsonl") for line in whole.splitlines() if line.strip()]
    if "stopped" in info:  # the rollout that PPO stopped at is not logged; the other figures are of the update before
        figures = info.get("metrics", {}).items()
        lines.append({name: value for name, value in figures if name.startswith(("objective/", "response/"))})
    return Written(folder, info, lines)


# --- stages ----------------------------------------------------------------------------------------------------------


def finished(stage: Written, name: str) -> Finding:
    if stopped := stage.info.get("stopped"):
        advice = "what the checks that failed here say; without any, a lower --learning_rate"
        return Finding("fail", "finished", f"stopped: {printable(stopped)}", advice)
    if not stage.info:
        return Finding("todo", "finished", f"no, it is at work or was killed: if so, {how_to_make(stage.path, name)}")
    return Finding("pass", "finished", "yes")


def parent(stage: Written, of: str, made: dict[str, Any], child: str) -> Finding | None:
    """`made` is the stage.json of the `of` checkpoint that lies in the run now."""
    recorded = [each.get("sha256") for each in stage.info.get("parents", []) if each.get("stage") == of]
    if not recorded or not made:
        return None
    same = made.get("sha256", {}).get(WEIGHTS) in recorded
    figure = f"trained on {'the' if same else 'another'} {of.upper()}" + (" of this run" if same else "")
    problem = "one of the two was made again since"
    return verdict(f"its {of.upper()}", figure, problem, how_to_make(stage.path, child), fail=not same)


def of_sft(sft: Written, run_dir: Path) -> list[Finding | None]:
    losses = sft.series("eval_loss")
    return [diagnoses.loss_fell(losses), diagnoses.overfitted_loss(sft.series("loss"), losses)]


def of_rm(rm: Written, run_dir: Path) -> list[Finding | None]:
    # On the labelers it learned from: those of the mini world, or the rankings kept aside of others.
    kept_aside = rm.figure("accuracy/rankings")
    shares = kept_aside or rm.figure("accuracy/training")
    labelers = None if kept_aside else rm.figure("agreement/training")
    return [
        parent(rm, "sft", read_json(run_dir / "sft" / "stage.json"), "rm"),
        diagnoses.accuracy(shares, labelers),
        diagnoses.below_agreement(shares, labelers),
        diagnoses.overfitted_accuracy(rm.series("accuracy"), shares),
        diagnoses.spread(rm.figure("score_std")),
    ]


def of_ppo(ppo: Written, run_dir: Path) -> list[Finding | None]:
    kl, lengths = ppo.series("objective/kl"), ppo.series("response/length")
    # Of the responses; runs from before it was logged have that of the distributions only, which is much the same.
    whole = ppo.series("objective/entropy")
    entropy = [e / n for e, n in zip(whole, lengths, strict=False)] or ppo.series("policy/entropy")
    own_reward = not ppo.option("reward", "")
    scores, stds = ppo.series("objective/scores"), ppo.series("objective/scores_std")
    measured = (
        read_json(run_dir / "compare.json"),
        ppo.info.get("sha256", {}).get(WEIGHTS),
        tool_command(run_dir, "compare"),
    )
    return [
        parent(ppo, "sft", read_json(run_dir / "sft" / "stage.json"), "ppo"),
        parent(ppo, "rm", read_json(run_dir / "rm" / "stage.json"), "ppo") if own_reward else None,
        diagnoses.first_kl(kl),
        diagnoses.ratio(ppo.series("policy/first_ratio_error")),
        diagnoses.negative_kl(kl),
        diagnoses.kl_size(kl, ppo.option("max_kl", 0.0)),
        diagnoses.moved(kl),
        diagnoses.clipped(ppo.series("policy/clip_fraction")),
        diagnoses.explained_variance(ppo.series("value/explained_variance"), stds),
        diagnoses.entropy_left(entropy),
        diagnoses.eos(ppo.series("response/eos_rate")),
        diagnoses.length(lengths),
        diagnoses.score_rose(scores, stds),
        # `compare` scores with the run's own reward model, which says nothing of a PPO that learned from another.
        diagnoses.gold(*measured) if own_reward and ppo.path.name == "ppo" else None,
    ]


STAGES = {
    "sft": ("supervised fine-tuning on demonstrations", of_sft),
    "rm": ("reward model, learned from rankings", of_rm),
    "ppo": ("PPO against the reward", of_ppo),
}


def examine(run_dir: Path, name: str, written: Written | None) -> list[Finding]:
    """All findings on one stage."""
    if written is None:
        return [Finding("todo", "", f"not there yet: {how_to_make(run_dir / name, name)}")]
    rates = written.series("learning_rate")
    general = [finished(written, name), diagnoses.numbers(written.lines), diagnoses.learning_rate(rates)]
    return [finding for finding in [*general, *STAGES[name][1](written, run_dir)] if finding]


def show(name: str, written: Written | None, findings: Sequence[Finding]) -> None:
    heading = f"{name}: {STAGES[name][0]}"
    if written is not None:
        seconds = f", {written.info['seconds']:.0f} s" if "seconds" in written.info else ""
        steps = max((line.get("step", 0) for line in written.lines), default=0)
        heading += f", {steps} {'updates' if name == 'ppo' else 'steps'}{seconds} ({written.path})"
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
        written = read(run_dir, name)
        findings = examine(run_dir, name, written)
        show(name, written, findings)
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
        parser.error(f"{run_dir} holds one stage: name the run's folder, {run_dir.parent}")
    sys.exit(0 if diagnose(run_dir) else 1)
