"""Builds the report of a run, one HTML file that needs nothing else: runs/<run>/report.html.

    python -m rlhf_mini.report --run seed0
    python -m rlhf_mini.report --run seed0 --language ko    # in Korean: runs/<run>/report.ko.html
    python -m rlhf_mini.report --run seed0 --no_live        # without the models: 1.5 MB instead of 11.5

Reads what `make compare`, `make evaluate` and, if it was run, `make overopt` measured, puts some responses under the
token microscope, packs the models so that the page can run them, and fills in page.html.jinja. The page opens from the
disk and makes no network requests. Text of models and people is data in it: the template escapes it, and the script
inserts it as text, never as HTML.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup
from pydantic import NonNegativeInt, PositiveFloat, TypeAdapter, ValidationError

from rlhf_mini.core.checkpoints import Checkpoint
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.files import damaged, plain, read_jsonl, replacing
from rlhf_mini.core.options import RunOptions, Seed, command_line, option, options, parse_options
from rlhf_mini.core.texts import Language, Texts, load_texts, script_json
from rlhf_mini.evaluation.answers import JUDGES, PAIRS
from rlhf_mini.evaluation.runs import find_checkpoints, measuring, tool_command
from rlhf_mini.evaluation.schema import PooledEvaluation, Study, Summary, read
from rlhf_mini.report import plots
from rlhf_mini.report.cost import COUNTED, STAGE_TITLES, costs
from rlhf_mini.report.explorer import STAGES, Row, RowKeys, look_at, pack_explorer, pick
from rlhf_mini.report.findings import elo, findings, number, share, summary
from rlhf_mini.report.live import pack_run
from rlhf_mini.world.gold import WEIGHTS
from stages.ppo.options import names_function

FOLDER = Path(__file__).parent
SCRIPTS = ("page", "microscope", "explorer", "live")


@options
class ReportOptions(RunOptions):
    """Options of `python -m rlhf_mini.report`."""

    base: str = option("data/base", "The pretrained checkpoint that SFT started from.")
    language: Language = option("en", "Language of the page, en or ko; prompts and responses stay as they are.")
    microscope_prompts: NonNegativeInt = option(120, "Prompts whose SFT and PPO responses are shown token by token.")
    reward: str = option(
        "", "If PPO was trained on a function: its package.module:function again, which allows to run its code."
    )
    live: bool = option(True, "Pack the models into the page, so that readers can ask them.")
    watts: PositiveFloat = option(30.0, "Assumed power draw of the machine, for the watt-hours.")
    seed: Seed = option(0, "Seed of the choice of prompts for the microscope.")


def main() -> None:
    settings = parse_options(
        ReportOptions,
        prog="python -m rlhf_mini.report",
        description="Builds the report of a run, one HTML file that needs nothing else: RUNS_DIR/RUN/report.html, "
        "or report.ko.html in Korean.",
    )
    path = write_report(settings, command_line("python -m rlhf_mini.report"))
    console.print(f"report: {path} written, {path.stat().st_size / 1e6:.1f} MB", soft_wrap=True)


def write_report(settings: ReportOptions, command: str) -> Path:
    """Writes the page, all or nothing, and returns its path. UserError if an input is missing, damaged or outdated."""
    checkpoints = find_checkpoints(settings.run_dir, settings.base)
    with measuring(settings.run_dir):  # not while compare.jsonl is already of another measurement than evaluate.json
        return _write_report(settings, command, checkpoints)


def _write_report(settings: ReportOptions, command: str, checkpoints: dict[str, Checkpoint]) -> Path:
    run_dir, texts = settings.run_dir, load_texts(FOLDER / "texts", settings.language)
    rows = read_rows(run_dir)
    evaluation = read_evaluation(run_dir, checkpoints)
    study = read_study(run_dir, checkpoints)
    metrics = {stage: read_jsonl(run_dir / stage / "metrics.jsonl") for stage in ("sft", "rm", "ppo")}
    reward = str(checkpoints["ppo"].info["options"].get("reward", ""))

    looks = look_at(run_dir, rows, pick(rows, settings.microscope_prompts, settings.seed), settings.reward)
    data = pack_explorer(rows, looks, texts)
    live = pack_run(run_dir, Path(settings.base), checkpoints["ppo"]) if settings.live else None
    spent = costs(checkpoints, metrics["ppo"], settings.watts)
    provenance: dict[str, Any] = {
        texts("provenance.page"): {"command": command, "options": dataclasses.asdict(settings)},
        "evaluate.json": evaluation.provenance,
    }
    if study:
        provenance["overopt.json"] = study.provenance
    page = template(texts).render(
        language=settings.language,
        run=settings.run,
        watts=settings.watts,
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script()),
        data=script_json(dataclasses.asdict(data)),
        live=live,
        live_data=script_json(live.settings()) if live else "",
        engine=Markup((FOLDER / "gpt2.js").read_text(encoding="utf-8")),
        measures=data.measures,
        shown=len(data.prompts),
        compared=len(rows),
        evaluation=evaluation,
        summary=summary(texts, evaluation, reward),
        win_rates=plots.win_rates(evaluation, texts),
        curves=plots.learning_curves(metrics, checkpoints["rm"].info.get("metrics", {}), texts),
        overopt=[
            plots.over_optimization(scenario, n, texts) for n, scenario in enumerate(study.scenarios if study else [])
        ],
        reward=reward,
        without_score=names_function(reward) and not settings.reward,
        command_for_overopt=tool_command(run_dir, "overopt"),
        costs=spent,
        findings=findings(texts, evaluation, metrics["ppo"], study, spent, checkpoints["ppo"]),
        counted=COUNTED,
        checkpoints=checkpoints,
        provenance=provenance,
        stages=STAGES,
        titles=STAGE_TITLES,
        judges={
            judge: texts.of(f"judge.{judge}", title) for judge, title in JUDGES.items() if judge in evaluation.win_rates
        },
        pairs={pair: texts.of(f"pair.{pair}", title) for pair, title in PAIRS.items()},
        parts=WEIGHTS,
    )
    path = run_dir / ("report.html" if settings.language == "en" else f"report.{settings.language}.html")
    with replacing(path) as file:
        file.write(page)
    return path


# --- reading ---------------------------------------------------------------------------------------------------------


def how_to(run_dir: Path, tool: str) -> str:
    """What to do about a measurement that is missing or outdated."""
    return f"run {tool_command(run_dir, tool)}"


def read_rows(run_dir: Path) -> list[Row]:
    """The lines of compare.jsonl. UserError if there are none, or they are damaged."""
    rows = read_jsonl(run_dir / "compare.jsonl")
    if not rows:
        raise UserError(f"{run_dir} was not compared yet: {how_to(run_dir, 'compare')}")
    try:
        TypeAdapter(list[RowKeys]).validate_python(rows, strict=True)
    except ValidationError:
        raise damaged(run_dir / "compare.jsonl") from None
    return rows


def read_evaluation(run_dir: Path, checkpoints: Mapping[str, Checkpoint]) -> PooledEvaluation:
    """evaluate.json. UserError if it is missing, or if the run was trained or compared again after it was written."""
    evaluate = how_to(run_dir, "evaluate")
    evaluation = read(PooledEvaluation, run_dir / "evaluate.json", evaluate)
    compared = read(Summary, run_dir / "compare.json", evaluate).provenance
    provenance = evaluation.provenance.get(run_dir.name)
    if provenance is None:
        raise UserError(f"{run_dir / 'evaluate.json'} is of another run: {evaluate}")
    for stage, checkpoint in checkpoints.items():
        measured = provenance.checkpoints.get(stage)
        if measured is None or (measured.sha256, measured.files_sha256 or checkpoint.files_sha256) != (
            checkpoint.sha256, checkpoint.files_sha256
        ):  # fmt: skip
            raise UserError(f"{run_dir} was evaluated before its {stage} was trained again: {evaluate}")
    if any(getattr(compared, key) != getattr(provenance, key) for key in ("checkpoints", "split_sha256", "options")):
        raise UserError(f"{run_dir} was compared again after it was evaluated: {evaluate}")
    return evaluation


def read_study(run_dir: Path, checkpoints: Mapping[str, Checkpoint]) -> Study | None:
    """overopt.json; None if there is none, or if it was measured on other checkpoints than the run has now."""
    path = run_dir / "overopt.json"
    study = read(Study, path, how_to(run_dir, "overopt")) if path.is_file() else None
    if study and any(
        study.provenance.get(f"{stage}_sha256", c.sha256) != c.sha256
        or study.provenance.get(f"{stage}_files_sha256", c.files_sha256) != c.files_sha256
        for stage, c in checkpoints.items()
    ):
        return None
    return study


# --- the page --------------------------------------------------------------------------------------------------------


def template(texts: Texts) -> Template:
    """The page, to be filled in. In it, `t` is a fixed text, and `of` and `named` are as in `Texts`."""
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "share": partial(share, texts), "number": partial(number, texts), "elo": partial(elo, texts),
        "flops": power_of_ten, "csp_hash": csp_hash, "pretty": pretty,
    }  # fmt: skip
    environment.globals |= {"t": texts.html, "of": texts.of, "named": texts.named}
    return environment.get_template("page.html.jinja")


def script() -> str:
    """The page's own script: its parts in one scope, which nothing outside can reach."""
    parts = [(FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def csp_hash(script: str) -> str:
    """The name by which a Content-Security-Policy allows this script to run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def power_of_ten(value: float | None) -> str:
    """3100000000000.0 as 3.1 × 10¹²."""
    if not value:
        return "–"
    digits, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"{digits}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10{raised}"


def pretty(value: Any) -> str:
    return json.dumps(plain(value), indent=1, ensure_ascii=False)
