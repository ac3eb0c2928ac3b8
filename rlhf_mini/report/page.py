"""Writes what a run came to as one HTML page that needs nothing else: runs/<run>/report.html.

    python -m rlhf_mini.report --run seed0

It reads what `make compare`, `make evaluate` and, if it was made, `make overopt` measured, looks at some responses
under the token microscope, and fills in page.html.jinja. The page opens from the disk and asks no network for
anything. Text of models and people is data in it: the template escapes it, the script sets it as text, never as HTML.
"""

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from rlhf_mini.core.checkpoints import Checkpoint, tool_command
from rlhf_mini.core.console import UserError, console, track
from rlhf_mini.core.files import plain, read_json, read_jsonl, replacing
from rlhf_mini.core.options import command_line, option, parse_options
from rlhf_mini.evaluation.compare import CompareOptions, find_checkpoints, spread
from rlhf_mini.evaluation.evaluate import JUDGES, PAIRS
from rlhf_mini.report import plots
from rlhf_mini.report.cost import COUNTED, TITLES, costs
from rlhf_mini.report.plots import Figure
from rlhf_mini.world.gold import WEIGHTS

STAGES = ("base", "sft", "ppo")
# Bytes of JSON at most, so that the page stays under 3 MB whatever is compared; the mini world fills about half.
ROOM = {"prompts": 1_500_000, "looks": 900_000}
Row = dict[str, Any]  # of compare.jsonl
Look = dict[str, list[Any]]  # "sft" and "ppo": score and tokens


@dataclass
class ReportOptions:
    """Options of `python -m rlhf_mini.report`."""

    run: str = option("default", "Name of the run; reads RUNS_DIR/RUN, writes RUNS_DIR/RUN/report.html.")
    runs_dir: str = option("runs", "Folder of all runs.")
    base: str = option("data/base", "The pretrained checkpoint that SFT started from.")
    microscope_prompts: int = option(120, "Prompts whose SFT and PPO responses are looked at token by token.")
    watts: float = option(30.0, "What the machine draws while it works, assumed, for the watt-hours.")
    seed: int = option(0, "Seed of which prompts, besides the extreme ones, are looked at.")

    def __post_init__(self) -> None:
        if self.microscope_prompts < 0:
            raise UserError(f"--microscope_prompts must not be negative, but is {self.microscope_prompts}")
        if not 0 < self.watts < math.inf:
            raise UserError(f"--watts must be greater than 0, not {self.watts}")

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.run


def main() -> None:
    options = parse_options(
        ReportOptions,
        prog="python -m rlhf_mini.report",
        description="Writes what a run came to as one HTML page that needs nothing else: RUNS_DIR/RUN/report.html.",
    )
    path = write_report(options, command_line("python -m rlhf_mini.report"))
    console.print(f"report: {path} written, {path.stat().st_size / 1e6:.1f} MB", soft_wrap=True)


def write_report(options: ReportOptions, command: str) -> Path:
    """Writes the page, all or nothing, and returns its path. UserError if something it needs is missing or broken."""
    checkpoints = find_checkpoints(CompareOptions(run=options.run, runs_dir=options.runs_dir, base=options.base))
    rows = read_rows(options.run_dir)
    evaluated = read_json(options.run_dir / "evaluate.json")
    if not evaluated:
        raise UserError(f"{options.run_dir} was not evaluated yet: {how_to(options.run_dir, 'evaluate')}")
    make = how_to(options.run_dir, "evaluate")
    measured_on = evaluated.get("provenance", {}).get(options.run, {})
    made = measured_on.get("checkpoints", {})
    for name, checkpoint in checkpoints.items():
        if made.get(name, {}).get("sha256", checkpoint.sha256) != checkpoint.sha256:
            raise UserError(f"{options.run_dir} was evaluated before its {name} was made again: {make}")
    compared = read_json(options.run_dir / "compare.json").get("provenance", {})
    if any(compared.get(key) != measured_on.get(key) for key in ("checkpoints", "split_sha256", "options")):
        raise UserError(f"{options.run_dir} was compared anew since it was evaluated: {make}")
    own_reward = checkpoints["ppo"].info["options"].get("reward", "")
    overopt = read_overopt(options.run_dir, checkpoints)
    lines = {name: read_jsonl(options.run_dir / name / "metrics.jsonl") for name in ("sft", "rm", "ppo")}

    looks = look_closely(options.run_dir, rows, pick(rows, options.microscope_prompts, options.seed))
    data = explorer_data(rows, looks)
    page = template().render(
        options=options,
        data=script_json(data),
        shown=len(data["rows"]),
        prompts=len(rows),
        evaluated=evaluated,
        summary=summary(evaluated, own_reward),
        ladder=plots.ladder(evaluated),
        curves=plots.learning_curves(lines, {name: c.info for name, c in checkpoints.items()}),
        overopt=[plots.over_optimization(scenario, n) for n, scenario in enumerate(overopt.get("scenarios", []))],
        own_reward=own_reward,
        how_to_overopt=how_to(options.run_dir, "overopt"),
        costs=costs(checkpoints, lines["ppo"], options.watts),
        checkpoints=checkpoints,
        measured={"this page": {"command": command, "options": dataclasses.asdict(options)}}
        | {
            name: found["provenance"]
            for name, found in (("evaluate.json", evaluated), ("overopt.json", overopt))
            if "provenance" in found
        },
        measures=[title for title, *_ in data["measures"]],
        counted=COUNTED,
        STAGES=STAGES, TITLES=TITLES, JUDGES=JUDGES, PAIRS=PAIRS,
    )  # fmt: skip
    path = options.run_dir / "report.html"
    with replacing(path) as file:
        file.write(page)
    return path


# --- reading ---------------------------------------------------------------------------------------------------------


def how_to(run_dir: Path, tool: str) -> str:
    """What to do about a measurement that is missing or old."""
    return f"run {tool_command(run_dir, tool)}"


def read_rows(run_dir: Path) -> list[Row]:
    """The prompts that were compared, with the responses. UserError if there are none, or they are damaged."""
    rows = read_jsonl(run_dir / "compare.jsonl")
    if not rows:
        raise UserError(f"{run_dir} was not compared yet: {how_to(run_dir, 'compare')}")
    if not all(row.get("prompt") and set(STAGES) <= set(row.get("stages", {})) for row in rows):
        raise UserError(f"{run_dir / 'compare.jsonl'} is damaged, or not written by this project: make it again")
    return rows


def read_overopt(run_dir: Path, checkpoints: dict[str, Checkpoint]) -> dict[str, Any]:
    """What `make overopt` measured; {} if it was not made, or of other checkpoints than the run has now."""
    overopt = read_json(run_dir / "overopt.json")
    made = overopt.get("provenance", {})
    same = all(made.get(f"{name}_sha256", c.sha256) == c.sha256 for name, c in checkpoints.items())
    return overopt if same else {}


# --- side by side, and under the microscope --------------------------------------------------------------------------


def moved(row: Row, key: str = "gold") -> float | None:
    """By how much PPO's response is better than SFT's, by gold or another score. None if one of them has none."""
    sft, ppo = (row["stages"][name].get(key) for name in ("sft", "ppo"))
    return None if sft is None or ppo is None else ppo - sft


def disagreement(row: Row) -> float | None:
    """How strongly RM and gold contradict each other on SFT against PPO; below 0, they agree."""
    by_gold, by_rm = moved(row), moved(row, "rm_score")
    return None if by_gold is None or by_rm is None else -by_gold * by_rm


def pick(rows: Sequence[Row], number: int, seed: int) -> list[int]:
    """Places of `number` rows for the microscope.

    The first, which the page opens with; a quarter each that moved up most, that moved down most and on which RM and
    gold disagree most; and the rest drawn from all use cases in turn.
    """

    def most(measure: Any, sign: int) -> list[int]:
        found = [(sign * value, place) for place, row in enumerate(rows) if (value := measure(row)) is not None]
        return [place for _, place in sorted(found)[: number // 4]]

    places = {id(row): place for place, row in enumerate(rows)}
    drawn = [places[id(row)] for row in spread(rows, len(rows), seed)]
    extremes = [0, *most(moved, -1), *most(moved, 1), *most(disagreement, -1)]
    return list(dict.fromkeys([*extremes, *drawn]))[:number]


def look_closely(run_dir: Path, rows: Sequence[Row], places: Sequence[int]) -> dict[int, Look]:
    """SFT's and PPO's response to each of these rows, under the microscope."""
    if not places:
        return {}
    import torch  # it and transformers take seconds to import, for which mistakes should not wait

    from rlhf_mini.evaluation.microscope import Microscope

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as fast for one response, and not slowed down by other work on the machine
    try:
        microscope = Microscope(run_dir)
        looks = {}
        for place in track(places, "report: token microscope"):
            answers = {name: rows[place]["stages"][name] for name in ("sft", "ppo")}
            looks[place] = {
                name: look(microscope, rows[place]["prompt"], answer)
                for name, answer in answers.items()
                if answer["response"] or answer["ended"]  # not cut before its first token
            }
        return looks
    finally:
        torch.set_num_threads(threads)


def look(microscope: Any, prompt: Any, answer: Row) -> list[Any]:
    """[score, tokens], each token as a list: text, two log-probabilities, the measures, SFT's likeliest and its own."""
    from rlhf_mini.core.examples import Response
    from rlhf_mini.evaluation.microscope import MEASURES

    view = microscope.look(prompt, Response(answer["response"], answer["ended"], answer.get("ids") or []))
    tokens = [
        [
            token.text,
            *(short(getattr(token, key), 3) for key in ("logprob", "ref_logprob", *MEASURES)),
            token.instead,
            short(token.instead_logprob, 3),
        ]
        for token in view.tokens
    ]
    return [short(view.score, 3), tokens]


def explorer_data(rows: Sequence[Row], looks: dict[int, Look]) -> dict[str, Any]:
    """What the page's script works with, as compact as JSON allows. Prompts that there is no room for are left out."""
    from rlhf_mini.evaluation.microscope import MEASURES

    looked = fitting(looks.items(), ROOM["looks"])
    first = {place for place, _ in looked}
    in_order = sorted(range(len(rows)), key=lambda place: place not in first)
    packed = fitting(((place, compact(rows[place], place)) for place in in_order), ROOM["prompts"])
    packed.sort(key=lambda pair: pair[0])
    now_at = {place: number for number, (place, _) in enumerate(packed)}
    return {
        "stages": [TITLES[name] for name in STAGES],
        "parts": list(WEIGHTS),
        "measures": [[title, how, scale(looks, n)] for n, (title, how) in enumerate(MEASURES.values())],
        "rows": [row for _, row in packed],
        "looks": {str(now_at[place]): both for place, both in looked if place in now_at},
    }


def compact(row: Row, place: int) -> list[Any]:
    answers = [
        [a["response"], bool(a["ended"]), a.get("tokens"), short(a.get("rm_score"), 2), short(a.get("gold"), 2),
         short(a.get("kl"), 2), [short((a.get("parts") or {}).get(part), 2) for part in WEIGHTS]]
        for a in (row["stages"][name] for name in STAGES)
    ]  # fmt: skip
    messages = [[message["role"], message["content"]] for message in row["prompt"]]
    about = [row.get(key) or "" for key in ("use_case", "kind", "novel")]
    return [row.get("id") or f"prompt-{place}", *about, messages, answers]


def fitting(items: Iterable[Any], room: int) -> list[Any]:
    """The first items whose JSON has room in so many bytes."""
    taken = []
    for item in items:
        room -= len(json.dumps(item)) + 2
        if room < 0:
            break
        taken.append(item)
    return taken


def scale(looks: dict[int, Look], measure: int) -> float:
    """The size of a measure that is coloured fully: 90 % of the tokens, without each response's last, are below it."""
    seen = [tokens[:-1] for both in looks.values() for _, tokens in both.values()]
    sizes = sorted(abs(token[3 + measure] or 0.0) for tokens in seen for token in tokens)
    return round(max(sizes[int(0.9 * len(sizes))], 0.01), 2) if sizes else 1.0


def short(value: float | None, digits: int) -> float | None:
    """Rounded; None if it is no finite number. Whole numbers lose their ".0"."""
    if value is None or not math.isfinite(value):
        return None
    rounded = round(value, digits)
    return int(rounded) if rounded == int(rounded) else rounded


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a <script> element: plain ASCII without <, > and &."""
    text = json.dumps(plain(value), separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


# --- the page --------------------------------------------------------------------------------------------------------


def summary(evaluated: dict[str, Any], own_reward: str = "") -> list[str]:
    """Three sentences made of the figures; a sentence without figures is left out.

    `own_reward` is the --reward that PPO was given instead of the run's reward model.
    """
    stages, rates = evaluated.get("stages", {}), evaluated.get("win_rates", {})
    by_gold = rates.get("gold") or rates.get("heldout") or rates.get("rm") or {}
    judge = next((JUDGES[name] for name in JUDGES if rates.get(name)), "")
    runs = evaluated.get("runs") or []
    pooled = f" (of the runs {', '.join(runs)} together)" if len(runs) > 1 else ""
    told = []
    if judge:
        told.append(
            f"On {evaluated.get('prompts', 0):,} prompts that SFT, RM and PPO were not trained on{pooled}, SFT's "
            f"response beats the base model's in {share(by_gold.get('sft/base'))}, and PPO's beats SFT's in "
            f"{share(by_gold.get('ppo/sft'))}, judged by the {judge}."
        )
    golds, scores = ([(stages.get(name) or {}).get(key) for name in STAGES] for key in ("gold", "rm_score"))
    if all(known(figure) for figure in [*golds, *scores[1:]]):
        sees = "did not see" if own_reward else "does see"
        told.append(
            f"The gold score, which says from 0 to 1 what a response is really worth and which no stage sees, is "
            f"{number(golds[0], False)} for the base model, {number(golds[1], False)} for SFT and "
            f"{number(golds[2], False)} for PPO; the reward model, which PPO {sees}, "
            f"goes from {number(scores[1], False)} to {number(scores[2], False)}."
        )
    sft, ppo = stages.get("sft") or {}, stages.get("ppo") or {}
    changes = {part: ppo[part]["mean"] - sft[part]["mean"] for part in WEIGHTS
               if known(sft.get(part)) and known(ppo.get(part))}  # fmt: skip
    if changes and known(ppo.get("kl")):
        most, least = max(changes, key=lambda p: changes[p]), min(changes, key=lambda p: changes[p])
        first, second = (f"“{p}” ({number(sft[p], False)} to {number(ppo[p], False)})" for p in (most, least))
        lost = "lost most" if changes[least] < 0 else "gained least"
        told.append(
            f"From SFT to PPO the part of the gold score that gained most is {first}, the one that {lost} is {second}; "
            f"in KL, PPO's responses are {number(ppo['kl'], False)} nats away from SFT."
        )
    return told


def template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "share": share,
        "number": number,
        "elo": elo,
        "flops": power_of_ten,
        "sha256": csp_hash,
        "pretty": pretty,
    }
    return environment.get_template("page.html.jinja")


def known(figure: Figure | None) -> bool:
    return bool(figure) and figure.get("mean") is not None  # type: ignore[union-attr]


def share(figure: Figure | None, interval: bool = True) -> str:
    """A share in per cent, with its interval."""
    return told(figure, lambda x: f"{100 * x:.0f}", "\N{NO-BREAK SPACE}%", interval)


def number(figure: Figure | None, interval: bool = True) -> str:
    return told(figure, lambda x: f"{x:.2f}".replace("-", "−"), "", interval)


def told(figure: Figure | None, form: Any, unit: str, interval: bool) -> str:
    if not figure or figure.get("mean") is None:
        return "–"
    low, high = figure.get("low"), figure.get("high")
    around = f" ({form(low)} to {form(high)}{unit})" if interval and low is not None and high is not None else ""
    return f"{form(figure['mean'])}{unit}{around}"


def elo(figure: Figure | None) -> str:
    return told(figure, lambda x: f"{x:.0f}".replace("-", "−"), "", interval=figure != {"mean": 0, "low": 0, "high": 0})


def power_of_ten(value: float | None) -> str:
    """3100000000000.0 as 3.1 × 10¹²."""
    if not value:
        return "–"
    digits, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"{digits}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10{raised}"


def csp_hash(script: str) -> str:
    """How a Content-Security-Policy names the one script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def pretty(value: Any) -> str:
    return json.dumps(plain(value), indent=1, ensure_ascii=False)
