"""What a run wrote, read and typed: stage.json and metrics.jsonl of each stage, and compare.json. Loads no model."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.checkpoints import known_by, read_stage_json
from rlhf_mini.core.files import damaged, is_number, parse_object, read_json, read_text


@dataclass(frozen=True)
class StageOutput:
    """The folder of a stage: a finished checkpoint, a running stage, or what was saved when it stopped."""

    path: Path
    info: dict[str, Any]  # stage.json; {} while the stage is running, and after it was killed
    lines: list[dict[str, Any]]  # metrics.jsonl; NaN and infinities are None

    def series(self, name: str) -> list[float]:
        """The finite values of a logged metric, in the order of the steps."""
        return [line[name] for line in self.lines if is_number(line.get(name))]

    @property
    def metrics(self) -> dict[str, Any]:
        """The final metrics of the stage, from stage.json."""
        return cast(dict[str, Any], self.info.get("metrics", {}))

    def share(self, name: str) -> Estimate | None:
        """A share of pairs among the final metrics. None if it was not measured, or if there was no pair."""
        found = self.metrics.get(name)
        if not isinstance(found, dict):
            return None
        numbers = [found[part] for part in ("share", "low", "high") if is_number(found.get(part))]
        return Estimate(*numbers) if len(numbers) == 3 else None

    def number(self, name: str) -> float | None:
        """A number among the final metrics. None if it was not measured."""
        found = self.metrics.get(name)
        return found if is_number(found) else None

    def option(self, name: str, default: Any) -> Any:
        """An option of the stage, if stage.json has one of the type of `default`."""
        found = self.info.get("options", {}).get(name)
        return found if (isinstance(found, str) if isinstance(default, str) else is_number(found)) else default

    @property
    def step(self) -> int:
        """The last step that was logged; 0 before the first."""
        return max(map(int, self.series("step")), default=0)

    @property
    def stopped(self) -> str | None:
        """Why the stage stopped early. None if it did not."""
        return cast(str | None, self.info.get("stopped"))

    @property
    def sha256(self) -> str | None:
        """Checksum of the weights. None until they are saved."""
        found = known_by(self.info)
        return found[-1] if found else None

    def built_on(self, stage: str) -> list[str]:
        """Checksums of the checkpoints of `stage` that this one was trained from: of all files, or of the weights."""
        parents = [parent for parent in self.info.get("parents", []) if parent["stage"] == stage]
        return [parent.get("files_sha256", parent["sha256"]) for parent in parents]


def read_stage(run_dir: Path, stage: str) -> StageOutput | None:
    """The newest of the stage's folders: finished, running, or saved at a stop. None if there is none.

    UserError if a file in it is damaged.
    """
    for _ in range(100):
        with suppress(FileNotFoundError):  # the stage has ended in between, and its folder has another name now
            return _read_stage(run_dir, stage)
    return None


def _read_stage(run_dir: Path, stage: str) -> StageOutput | None:
    folders = [run_dir / f"{stage}{suffix}" for suffix in ("", ".partial", ".last_good")]
    files = [path for folder in folders for path in (folder / "metrics.jsonl", folder / "stage.json") if path.is_file()]
    if not files:
        return None
    folder = max(files, key=lambda path: path.stat().st_mtime).parent
    info, lines = read_stage_json(folder), []
    if (folder / "metrics.jsonl").is_file():
        text = read_text(folder / "metrics.jsonl")
        complete = text[: text.rfind("\n") + 1]  # the stage may be writing the last line right now
        lines = [parse_object(line, folder / "metrics.jsonl") for line in complete.splitlines() if line.strip()]
    if "stopped" in info:  # PPO stops before it logs the rollout; only these metrics in stage.json are of that rollout
        last = info.get("metrics", {}).items()
        lines.append({name: value for name, value in last if name.startswith(("objective/", "response/"))})
    return StageOutput(folder, info, lines)


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
    try:
        stages = summary["groups"]["all"]["stages"]
        sft, ppo = stages["sft"], stages["ppo"]
        gain = ppo["gold_minus_sft"]
        return TypeAdapter(Comparison).validate_python(
            {
                "ppo_sha256": summary["provenance"]["checkpoints"]["ppo"]["sha256"],
                "sft_gold": sft["gold"]["mean"],
                "ppo_gold": ppo["gold"]["mean"],
                "gold_gain": None if gain["mean"] is None else gain,
                "sft_score": sft["rm_score"]["mean"],
                "ppo_score": ppo["rm_score"]["mean"],
            }
        )
    except (KeyError, TypeError, AttributeError, ValidationError):
        raise damaged(run_dir / "compare.json") from None
