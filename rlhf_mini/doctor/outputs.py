"""What a run wrote, read and typed: stage.json and metrics.jsonl of each stage, and compare.json. Loads no model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.checkpoints import WEIGHTS
from rlhf_mini.core.files import parse_object, read_json, read_text


@dataclass(frozen=True)
class StageOutput:
    """The folder of a stage: a finished checkpoint, a running stage, or what was saved when it stopped."""

    path: Path
    info: dict[str, Any]  # stage.json; {} while the stage is running, and after it was killed
    lines: list[dict[str, Any]]  # metrics.jsonl; NaN and infinities are None

    def series(self, name: str) -> list[float]:
        """The finite values of a logged metric, in the order of the steps."""
        return [line[name] for line in self.lines if isinstance(line.get(name), (int, float))]

    @property
    def metrics(self) -> dict[str, Any]:
        """The final metrics of the stage, from stage.json."""
        return cast(dict[str, Any], self.info.get("metrics", {}))

    def share(self, name: str) -> Estimate | None:
        """A share of pairs among the final metrics. None if it was not measured, or if there was no pair."""
        found = self.metrics.get(name)
        if not found or found["share"] is None:
            return None
        return Estimate(found["share"], found["low"], found["high"])

    def option(self, name: str, default: Any) -> Any:
        return self.info.get("options", {}).get(name, default)

    @property
    def step(self) -> int:
        """The last step that was logged; 0 before the first."""
        return max((line.get("step", 0) for line in self.lines), default=0)

    @property
    def stopped(self) -> str | None:
        """Why the stage stopped early. None if it did not."""
        return cast(str | None, self.info.get("stopped"))

    @property
    def sha256(self) -> str | None:
        """Checksum of the weights. None until they are saved."""
        return _weights_sha256(self.info)

    def built_on(self, stage: str) -> list[str]:
        """Checksums of the checkpoints of `stage` that this one was trained from."""
        return [parent["sha256"] for parent in self.info.get("parents", []) if parent["stage"] == stage]


def read_stage(run_dir: Path, stage: str) -> StageOutput | None:
    """The newest of the stage's folders: finished, running, or saved at a stop. None if there is none.

    UserError if a file in it is damaged.
    """
    folders = [run_dir / f"{stage}{suffix}" for suffix in ("", ".partial", ".last_good")]
    files = [path for folder in folders for path in (folder / "metrics.jsonl", folder / "stage.json") if path.is_file()]
    if not files:
        return None
    folder = max(files, key=lambda path: path.stat().st_mtime).parent
    info, lines = read_json(folder / "stage.json"), []
    if (folder / "metrics.jsonl").is_file():
        text = read_text(folder / "metrics.jsonl")
        complete = text[: text.rfind("\n") + 1]  # the stage may be writing the last line right now
        lines = [parse_object(line, folder / "metrics.jsonl") for line in complete.splitlines() if line.strip()]
    if "stopped" in info:  # PPO stops before it logs the rollout; only these metrics in stage.json are of that rollout
        last = info.get("metrics", {}).items()
        lines.append({name: value for name, value in last if name.startswith(("objective/", "response/"))})
    return StageOutput(folder, info, lines)


def finished_sha256(run_dir: Path, stage: str) -> str | None:
    """Checksum of the weights in the run's finished checkpoint of `stage`. None if there is none."""
    return _weights_sha256(read_json(run_dir / stage / "stage.json"))


def _weights_sha256(info: dict[str, Any]) -> str | None:
    return cast(str | None, info.get("sha256", {}).get(WEIGHTS))


@dataclass(frozen=True)
class Comparison:
    """What compare.json says about SFT and PPO: means over the prompts they were compared on."""

    ppo_sha256: str  # of the weights that were measured
    sft_gold: float | None  # None if no prompt has a gold score
    ppo_gold: float | None
    gold_gain: Estimate | None  # PPO's gold score minus SFT's
    sft_score: float  # of the run's reward model
    ppo_score: float


def read_comparison(run_dir: Path) -> Comparison | None:
    """compare.json, typed. None if the run has not been compared yet."""
    summary = read_json(run_dir / "compare.json")
    if not summary:
        return None
    stages = summary["groups"]["all"]["stages"]
    sft, ppo = stages["sft"], stages["ppo"]
    gain = ppo["gold_minus_sft"]
    return Comparison(
        ppo_sha256=summary["provenance"]["checkpoints"]["ppo"]["sha256"],
        sft_gold=sft["gold"]["mean"],
        ppo_gold=ppo["gold"]["mean"],
        gold_gain=None if gain["mean"] is None else Estimate(gain["mean"], gain["low"], gain["high"]),
        sft_score=sft["rm_score"]["mean"],
        ppo_score=ppo["rm_score"]["mean"],
    )
