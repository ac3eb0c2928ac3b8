"""`python -m rlhf_mini.report`: numbers checked by hand, the page as a file, and the page in a real browser."""

import base64
import dataclasses
import hashlib
import html as markup
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import launched
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.checkpoints import load_checkpoint, save_checkpoint, writing
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.files import read_jsonl, sha256, write_json, write_jsonl
from rlhf_mini.core.texts import load_texts, read_texts, read_translated, text_problems
from rlhf_mini.evaluation.answers import JUDGES, PAIRS
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.evaluation.runs import find_checkpoints, measuring, provenance
from rlhf_mini.evaluation.schema import (
    Baseline,
    Contrast,
    Curve,
    Diversity,
    Fit,
    Gold,
    Ordered,
    Point,
    PooledEvaluation,
    Probed,
    Scenario,
    Start,
    Study,
    Summary,
    Training,
)
from rlhf_mini.models.text import encode_prompts, encode_response
from rlhf_mini.report import cost, explorer, plots
from rlhf_mini.report import page as report
from rlhf_mini.report.cost import Work, costs, work
from rlhf_mini.report.explorer import fitting, pick
from rlhf_mini.report.findings import summary
from rlhf_mini.report.page import ReportOptions, script_json, write_report
from rlhf_mini.report.translation import english_texts
from rlhf_mini.world.gold import WEIGHTS
from stages.ppo.options import PPOOptions
from stages.rm.options import RMOptions
from stages.sft.options import SFTOptions

ROOT = Path(__file__).parents[2]
TEXTS = Path(report.__file__).with_name("texts")
ENGLISH, KOREAN = load_texts(TEXTS, "en"), load_texts(TEXTS, "ko")
EVIL = "<script>alert(1)</script></script><img src=x onerror=alert(2)>\u2028\"two\" 'one' &amp; {{ 7 * 7 }}"
PARTS = {"task": 1.0, "truthful": None, "harmless": 1.0, "courteous": 0.0, "concise": 1.0, "ends": 1.0}


def answer(text: str, gold: float | None, rm_score: float, **other: Any) -> dict[str, Any]:
    usual = {"response": text, "ended": True, "tokens": 9, "words": 3, "kl": None}
    return usual | {"gold": gold, "rm_score": rm_score, "parts": None if gold is None else PARTS} | other


def row(number: int, use_case: str, text: str, sft: tuple[float, float], ppo: tuple[float, float]) -> dict[str, Any]:
    """A prompt with SFT's and PPO's (gold, RM score); base has gold 0.1."""
    stages = {
        "base": answer("Colour?", 0.1, 0.0, ended=False),
        "sft": answer("It is green.", *sft, kl=0.0),
        "ppo": answer(f"It is Paris {number}.", *ppo, kl=2.5),
    }
    about = {"id": f"t-{number}", "use_case": use_case, "kind": "fact", "novel": "none" if number % 2 else "entity"}
    return {**about, "prompt": [{"role": "user", "content": text}], "stages": stages}


ROWS = [
    row(0, "chat", "First?", (0.5, 0.0), (0.6, 1.0)),  # +0.1
    row(1, "chat", "Second?", (0.2, 0.0), (1.0, 2.0)),  # +0.8, the largest gain
    row(2, "open_qa", "Third?", (0.9, 0.0), (0.1, 1.0)),  # -0.8, the largest loss; RM still prefers PPO
    row(3, "open_qa", "Fourth?", (0.7, 0.0), (0.7, 1.0)),  # a tie
    row(4, "extract", EVIL, (0.3, 1.0), (0.5, 0.5)),  # +0.2, but RM prefers SFT
    {  # a prompt of the user's own: nothing is known of it
        "prompt": [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": "Own?"},
        ],
        "stages": {
            "base": {"response": "", "ended": False, "rm_score": 0.0, "gold": None},
            "sft": {"response": "", "ended": False, "rm_score": 0.0, "gold": None},
            "ppo": {"response": "Paris", "ended": True, "rm_score": 1.0, "gold": None},
        },
    },
]
ROWS[4]["stages"]["ppo"]["response"] = EVIL


def estimate(mean: float) -> Estimate:
    return Estimate(mean, mean - 0.02, mean + 0.03)


NOTHING = Estimate(math.nan, math.nan, math.nan)
BY_STAGE = {
    name: {"gold": estimate(gold), "rm_score": estimate(2 * gold), "kl": estimate(4 * gold), "task": estimate(gold),
           "gold_minus_sft": estimate(gold - 0.5),
           "courteous": estimate(1.1 * gold), **dict.fromkeys(("truthful", "harmless", "concise", "ends"), NOTHING)}
    for name, gold in (("base", 0.1), ("sft", 0.5), ("ppo", 0.8))
}  # fmt: skip
GOLDS = {name: measures["gold"] for name, measures in BY_STAGE.items()}
WINS = {judge: {pair: estimate(0.8) for pair in PAIRS} for judge in JUDGES}
GROUP = Gold(3, GOLDS, estimate(0.75))
EVALUATION = PooledEvaluation(
    runs=["r"], prompts=len(ROWS), stages=BY_STAGE, win_rates=WINS, length_controlled=WINS,
    bradley_terry={"gold": {"base": Estimate(0.0, 0.0, 0.0), "sft": estimate(400), "ppo": estimate(-5)}},
    use_cases={"open_qa": GROUP, EVIL: GROUP}, novel={"none": GROUP},
    probes={"p": Probed(title=EVIL, how="Asked.", unit="nats", better="lower", prompts=4, stages=GOLDS)},
    content={"fact": Contrast(EVIL, Ordered(8, *3 * [estimate(0.5)]), Ordered(4, *3 * [estimate(0.25)]))},
    baselines={
        "b": Baseline(title=EVIL, how="What it is.", prompts=5, estimates=BY_STAGE["ppo"], ppo_minus=estimate(0.07)),
    },
    diversity={
        stage: Diversity(samples=16, prompts=6, distinct=estimate(9.5), stories=3, last_sentence=EVIL,
                         last_sentence_share=estimate(0.4))
        for stage in ("sft", "ppo")
    },
    by_run={}, provenance={}, options={},
)  # fmt: skip
POINTS = [Point(n=2**k, update=k, kl=float(k), proxy=estimate(0.5 * k), gold=estimate(0.1 * k)) for k in range(4)]
FIT = {"proxy": Fit(1.0, 0.1, 0.0, 1.0), "gold": Fit(0.2, 0.1, 0.0, 1.0)}
UNFITTED = dict.fromkeys(FIT, Fit(math.nan, math.nan, math.nan, math.nan))
STUDY = Study(
    prompts=3, provenance={},
    scenarios=[
        Scenario(
            name="default", title=EVIL, what="What it is.", proxy_name="RM score", rm={}, sft=Start(0.0, 0.5),
            recipe=POINTS[2], best_of_n=Curve(points=POINTS, fall=NOTHING, fit=FIT),
            ppo=[Training(kl_coef=0.07, default=True, points=POINTS, fall=NOTHING, fit=UNFITTED)],
        )
    ],
)  # fmt: skip


def make_run(base: Path, folder: Path) -> ReportOptions:
    """A run "r" of random models in `folder`, measured on ROWS."""
    run_dir, data = folder / "runs" / "r", folder / "data"
    prompts = [{"prompt": one["prompt"]} for one in ROWS[:4]]
    write_jsonl(data / "prompts.jsonl", prompts)
    write_jsonl(data / "texts.jsonl", [{"text": "The moon is green."}] * 4)
    completion = [{"role": "assistant", "content": "It is green."}]
    write_jsonl(data / "demonstrations.jsonl", [{**one, "completion": completion} for one in prompts])
    options = {
        "sft": SFTOptions(demonstrations=str(data / "demonstrations.jsonl"), ptx_texts=str(data / "texts.jsonl")),
        "rm": RMOptions(num_samples=3),
        "ppo": PPOOptions(prompts=str(data / "prompts.jsonl"), ptx_texts=str(data / "texts.jsonl"), episodes=8),
    }
    metrics: dict[str, dict[str, Any]] = {
        "sft": {"demonstrations": 4},
        "rm": {"rankings": 3, "rankings_held_out": 1, "agreement/training": {"share": 0.7}},
        "ppo": {},
    }
    lines = {
        "sft": [
            *({"step": s, "loss/demonstrations": 2.0 - 0.1 * s} for s in range(9)),
            *({"step": s, "eval_loss": 1.5} for s in (0, 8)),
        ],
        "rm": [{"step": s, "loss": 0.69, "accuracy": 0.5} for s in range(5)],
        "ppo": [
            {"step": s, "objective/scores": 0.1 * s, "objective/kl": s, "response/length": 10.0 + s,
             "response/eos_rate": 1.0}
            for s in (1, 2)
        ],
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base)
    parents = [load_checkpoint(base, "base")]
    for seed, stage in enumerate(options):
        torch.manual_seed(seed)
        kind = AutoModelForSequenceClassification if stage == "rm" else AutoModelForCausalLM
        model = kind.from_pretrained(base, **({"num_labels": 1} if stage == "rm" else {}))
        with torch.no_grad():
            model.transformer.wte.weight.add_(0.1 * torch.randn_like(model.transformer.wte.weight))
        with writing(run_dir, stage) as partial:
            write_jsonl(partial / "metrics.jsonl", lines[stage])
            if stage == "rm":
                ranked = {"responses": ["It is green.", "Paris"], "ranks": [1, 2]}
                write_jsonl(partial / "rankings.jsonl", [{**one, **ranked} for one in prompts])
            if stage == "ppo":
                AutoModelForSequenceClassification.from_pretrained(run_dir / "rm").save_pretrained(
                    partial / "value_model"
                )
            save_checkpoint(
                partial, stage=stage, model=model, tokenizer=tokenizer, options=options[stage], seed=seed,
                metrics=metrics[stage], started=time.time() - 10, parents=parents,
            )  # fmt: skip
        parents = [*parents, load_checkpoint(run_dir / stage, stage)]
    write_jsonl(run_dir / "compare.jsonl", ROWS)
    settings = CompareOptions(run="r", runs_dir=str(folder / "runs"), split=str(data / "prompts.jsonl"))
    of_run = provenance(settings, "make compare", find_checkpoints(run_dir, base))
    compared = Summary(
        headline={}, use_cases_below_sft=[], cost={}, groups={}, demonstrated_tokens={}, provenance=of_run
    )
    write_json(run_dir / "compare.json", compared)
    write_json(run_dir / "evaluate.json", replace(EVALUATION, provenance={"r": of_run}))
    write_json(run_dir / "overopt.json", STUDY)
    return ReportOptions(run="r", runs_dir=str(folder / "runs"), base=str(base), microscope_prompts=20)


@pytest.fixture(scope="module")
def made(_nano_base: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportOptions:
    """The run whose page most tests read; the page is written once."""
    options = make_run(_nano_base, tmp_path_factory.mktemp("report"))
    with console.capture():
        write_report(options, "the command")
    return options


@pytest.fixture(scope="module")
def html(made: ReportOptions) -> str:
    return (made.run_dir / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def copy(made: ReportOptions, tmp_path: Path) -> ReportOptions:
    """A copy of the run, to break; without microscope and live models, which take time."""
    shutil.copytree(made.runs_dir, tmp_path / "runs")
    return ReportOptions(run="r", runs_dir=str(tmp_path / "runs"), base=made.base, microscope_prompts=0, live=False)


# --- numbers checked by hand -----------------------------------------------------------------------------------------


def test_the_microscope_takes_the_extremes_first() -> None:
    # The first row, the largest gain, and the largest loss, where RM and gold also disagree most.
    assert pick(ROWS, 4, seed=0)[:3] == [0, 1, 2]
    assert pick(ROWS, 4, seed=0) == pick(ROWS, 4, seed=0)
    assert sorted(pick(ROWS, 99, seed=0)) == list(range(len(ROWS)))
    assert pick(ROWS, 0, seed=0) == []


def test_gain_and_disagreement() -> None:
    assert explorer.gain(ROWS[2]) == pytest.approx(-0.8)
    assert explorer.disagreement(ROWS[2]) == pytest.approx(0.8)  # gold -0.8, RM +1
    assert explorer.disagreement(ROWS[1]) == pytest.approx(-1.6)
    assert explorer.gain(ROWS[5]) is None and explorer.disagreement(ROWS[5]) is None


@pytest.mark.parametrize("recent", ["color-mix(", ":has(", ".at(", ".replaceAll(", "structuredClone("])
def test_the_page_asks_for_no_recent_browser(html: str, recent: str) -> None:
    style, script = html[html.index("<style") : html.index("</style>")], html[html.index("<script") :]
    assert recent not in style and recent not in script


def test_content_is_told_by_kind_and_part(html: str) -> None:
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th><td>(seen|new)</td>(.*?)</tr>', html, re.DOTALL)
    assert [(markup.unescape(title), part) for title, part, _ in rows] == [(EVIL, "seen"), (EVIL, "new")]
    assert rows[1][2].count("25% (23 to 28%)") == 3 and '<td class="number">4</td>' in rows[1][2]


def test_a_colour_scale_ends_at_the_90th_percentile() -> None:
    assert explorer.colour_scale([[*range(1, 11), 99], [None, -99]]) == 9.0  # 11 tokens: 0 to 10; the ends count not
    assert explorer.colour_scale([[0.0, 1.0]]) == 0.01  # nothing to tell apart
    assert explorer.colour_scale([]) == 1.0


def test_flops_and_watt_hours() -> None:
    assert Work("", 6, 100, 7.0).flops == 4200.0
    assert cost.watt_hours(120.0, 30.0) == 1.0


def test_what_each_stage_computed(made: ReportOptions) -> None:
    checkpoints = {"base": load_checkpoint(made.base, "base")}
    checkpoints |= {name: load_checkpoint(made.run_dir / name, name) for name in ("sft", "rm", "ppo")}
    iterations = read_jsonl(made.run_dir / "ppo" / "metrics.jsonl")

    model = AutoModelForCausalLM.from_pretrained(made.run_dir / "sft")
    width, vocabulary = model.config.n_embd, model.config.vocab_size
    body = sum(p.numel() for p in model.parameters()) - width * (vocabulary + model.config.n_positions)
    head = width * vocabulary
    tokenizer = AutoTokenizer.from_pretrained(made.base)
    prompts = [len(each.ids) for each in encode_prompts(tokenizer, [one["prompt"] for one in ROWS[:4]])]
    green, paris = (len(encode_response(tokenizer, text)) for text in ("It is green.", "Paris"))

    sft, mixed_in = work("sft", checkpoints, iterations)
    assert sft.flops == 6 * (body + head) * 2 * (sum(prompts) + 4 * green)  # two epochs
    text = len(tokenizer("The moon is green.")["input_ids"]) + 2
    assert mixed_in.flops == 6 * (body + head) * (2 * 4 / 32) * 8 * text  # 8 beside a batch of 32
    sampling, likelihood, training = work("rm", checkpoints, iterations)
    of_ranking = (2 * sum(prompts) + 4 * (green + paris)) / 4
    sampled = 4 / 2  # three samples and the base's for each two that were ranked
    assert sampling.flops == pytest.approx(2 * (body + head) * 4 * of_ranking * sampled)
    assert likelihood.flops == pytest.approx(2 * (body + head) * 3 * of_ranking)
    assert training.flops == pytest.approx(6 * body * 3 * of_ranking)
    tokens = 8 * (sum(prompts) / 4 + 11) + 8 * (sum(prompts) / 4 + 12)  # two iterations of 8 responses
    by_head = sum(part.flops for part in work("ppo", checkpoints, iterations))
    by_head -= 6 * (body + head) * 2 * 4 * 6 * text  # two iterations, four minibatches, six texts beside each
    assert by_head == pytest.approx(tokens * ((2 + 2 + 6) * (body + head) + (2 + 2 + 6) * body))

    *stages, total = costs(checkpoints, iterations, watts=36.0)
    assert [cost.stage for cost in stages] == ["base", "SFT", "RM", "PPO"]
    assert total.flops == sum(cost.flops or 0 for cost in stages[1:])
    assert total.seconds == pytest.approx(sum(cost.seconds for cost in stages[1:]))
    assert total.watt_hours == pytest.approx(total.seconds / 100)
    assert total.memory == max(cost.memory for cost in stages[1:])


def test_a_stage_whose_data_are_gone_has_no_flops(copy: ReportOptions) -> None:
    checkpoints = {"base": load_checkpoint(copy.base, "base")}
    checkpoints |= {name: load_checkpoint(copy.run_dir / name, name) for name in ("sft", "rm", "ppo")}
    (copy.run_dir / "rm" / "rankings.jsonl").unlink()
    of_rm, total = (costs(checkpoints, [], 30.0)[place] for place in (2, 4))
    assert of_rm.flops is None and total.flops is None and total.seconds > 0


def test_the_summary_leaves_out_what_was_not_measured() -> None:
    first, second, third = summary(ENGLISH, replace(EVALUATION, prompts=1200))
    assert "On 1,200 prompts" in first and "on 80% (78 to 83%)" in first
    assert "0.10 for the base model, 0.50 for SFT and 0.80 for PPO" in second and "from 1.00 to 1.60" in second
    assert "“courteous” (0.55 to 0.88)" in third and "“task” (0.50 to 0.80)" in third
    assert "3.20 nats per response" in third
    assert "RM and PPO (runs a, b pooled)" in summary(ENGLISH, replace(EVALUATION, runs=["a", "b"]))[0]
    # Prompts of the user's own have no gold and no labelers: the reward model is the only judge.
    lacking = {judge: dict.fromkeys(PAIRS, NOTHING) for judge in ("gold", "references", "heldout")}
    no_gold = {stage: dict.fromkeys(measures, NOTHING) for stage, measures in BY_STAGE.items()}
    (only,) = summary(ENGLISH, replace(EVALUATION, win_rates={**WINS, **lacking}, stages=no_gold))
    assert only.endswith("judged by the reward model.")


def test_numbers_in_words() -> None:
    assert report.power_of_ten(3.14e12) == "3.1\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10¹²"
    assert report.power_of_ten(9.96e12).startswith("1.0") and report.power_of_ten(None) == "–"
    assert report.number(ENGLISH, Estimate(-0.5, -1.0, 0.25)) == "−0.50 (−1.00 to 0.25)"
    assert report.share(ENGLISH, NOTHING) == "–"
    assert [explorer.rounded(x, 2) for x in (1.0, 0.126, -0.0001, None, float("nan"))] == [1, 0.13, 0, None, None]


def test_fits_of_gao_et_al() -> None:
    fit = Fit(3.0, 0.5, 0.0, 1.0)
    assert plots.fitted_gain(fit, 2.0, by_ppo=False) == 2.0 * (3.0 - 1.0)
    assert plots.fitted_gain(fit, 1.0, by_ppo=True) == 3.0  # log 1 = 0
    assert plots.fitted_gain(fit, 0.0, by_ppo=True) == 0.0
    points = [Point(kl=4.0, gold=Estimate(1.0, 0.5, 2.0), proxy=NOTHING)]
    measured, line = plots.optimized("gold", 0, "x", points, fit, by_ppo=False)
    assert (measured.x, measured.y, measured.errors) == ([2.0], [1.0], [(0.5, 2.0)]) and not measured.lined
    assert line.x[-1] == 2.0 and line.y[-1] == 4.0
    assert [series.lined for series in plots.optimized("gold", 0, "x", points * 2, UNFITTED["gold"])] == [True]
    assert plots.running_mean([1.0, 2.0, 6.0], 3) == [1.5, 3.0, 4.0]


# --- the file --------------------------------------------------------------------------------------------------------


def test_json_cannot_leave_its_script_element() -> None:
    text = script_json({EVIL: [EVIL, float("nan"), "\u2029\x00"]})
    assert not set("<>&\u2028\u2029\x00") & set(text)
    assert json.loads(text) == {EVIL: [EVIL, None, "\u2029\x00"]}


def test_the_script_gets_its_data_by_name(html: str) -> None:
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])
    assert [prompt["id"] for prompt in data["prompts"]] == ["t-0", "t-1", "t-2", "t-3", "t-4", "prompt-5"]
    first, own = data["prompts"][0], data["prompts"][5]
    assert first["answers"]["ppo"] == {
        "text": "It is Paris 0.", "ended": True, "tokens": 9, "rm_score": 1, "gold": 0.6, "log_ratio": 2.5,
        "parts": {"task": 1, "harmless": 1, "courteous": 0, "concise": 1, "ends": 1},
    }  # fmt: skip
    assert own["messages"] == ROWS[5]["prompt"] and own["use_case"] == "" and own["answers"]["sft"]["gold"] is None
    assert set(first["looks"]) == {"sft", "ppo"} and set(own["looks"]) == {"ppo"}  # its SFT response has no token
    look = first["looks"]["ppo"]
    columns = [look[name] for name in ("text", "logprob", "ref_logprob", "ref_top", "ref_top_logprob")]
    assert {len(column) for column in [*columns, *look["measures"].values()]} == {len(look["text"])}
    assert list(look["measures"]) == list(data["measures"])

    script = report.script()
    declared = (explorer.Explorer, explorer.Measure, explorer.ShownPrompt, explorer.Answer, explorer.Look)
    names = {field.name for one in declared for field in dataclasses.fields(one)}
    assert {name for name in names if not re.search(rf"\b{name}\b", script)} == set()


def test_texts_are_escaped(html: str) -> None:
    # The data, the settings and the engine of the live models, five times weights, and the page's own.
    assert html.count("<script") == html.count("</script") == 9
    assert "<img" not in html and "onerror=alert(2)&gt;" in html  # EVIL as a use case, a probe and a scenario
    assert "{{" not in html.replace("{{ 7 * 7 }}", "")


def test_baselines_and_diversity_are_on_the_page(html: str) -> None:
    section = html[html.index('id="baselines"') : html.index('id="microscope"')]
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", section, re.DOTALL)]
    assert cells[:3] == ["0.50 (0.48 to 0.53)", "0.30 (0.28 to 0.33)", "0.50"]  # SFT: gold, PPO minus it, task
    assert cells[8:10] == ["0.80 (0.78 to 0.83)", "0.07 (0.05 to 0.10)"]
    assert cells[16:18] == ["0.80 (0.78 to 0.83)", "–"]  # PPO
    assert cells[24] == "9.50 (9.48 to 9.53) of 16" and cells[26] == "40% (38 to 43%)"


def test_only_the_own_script_may_run_and_nothing_may_be_fetched(html: str) -> None:
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)[0]
    assert script == report.script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)[0]
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert "innerHTML" not in script and "outerHTML" not in script and "insertAdjacentHTML" not in script
    assert "worker-src blob:;" in policy
    fetched = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#|data:)([^"'\s>)]+)""", html)
    assert set(fetched) <= {"x", "https://arxiv.org/abs/2210.10760", "https://arxiv.org/abs/2001.08361"}  # x is EVIL's


def test_ids_are_unique_and_what_they_name_is_there(html: str) -> None:
    ids = re.findall(r'<[^>]*\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html) + re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_the_same_run_gives_the_same_bytes(copy: ReportOptions) -> None:
    first = write_report(copy, "").read_bytes()
    assert write_report(copy, "").read_bytes() == first
    assert sorted(path.name for path in copy.run_dir.glob("report*")) == ["report.html"]


def test_an_svg_takes_the_colours_of_the_page() -> None:
    series = [plots.Series("one", [0, 1], [0, 1], window=3), plots.Series("$two$ <b>", [0, 1], [1, 0.275], 1)]
    drawn = plots.panel("name", EVIL, "x", "y", series, level=(0.275, "level"))
    assert drawn == plots.panel("name", EVIL, "x", "y", series, level=(0.275, "level"))
    assert "currentColor" in drawn and "var(--s1)" in drawn and "#01" not in drawn
    assert "$two$ &lt;b&gt;" in drawn and "<script" not in drawn
    assert 'role="img"' in drawn and "viewBox" in drawn and "<?xml" not in drawn


def test_a_page_of_any_run_stays_small(copy: ReportOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitting(["a", "bb", "c"], 4 + 5) == ["a", "bb"]  # each with its quotes and separator
    many = [{**ROWS[0], "id": f"t-{n}"} for n in range(9000)]
    write_jsonl(copy.run_dir / "compare.jsonl", many)
    path = write_report(copy, "")
    assert path.stat().st_size < 3_000_000
    assert re.search(r"for \d+ of the 9000 prompts", path.read_text(encoding="utf-8"))


def test_a_reward_of_ones_own_is_told(copy: ReportOptions) -> None:
    stage = copy.run_dir / "ppo" / "stage.json"
    info = json.loads(stage.read_text(encoding="utf-8"))
    stage.write_text(json.dumps(info | {"options": info["options"] | {"reward": "stages.ppo.rewards:short"}}))
    (copy.run_dir / "overopt.json").unlink()
    copy = replace(copy, microscope_prompts=1)
    trusting = replace(copy, reward="stages.ppo.rewards:short")
    page = write_report(trusting, "").read_text(encoding="utf-8")
    assert "if you trust this run" not in page and '"score":null' not in page
    page = write_report(copy, "").read_text(encoding="utf-8")
    assert "<code>--reward stages.ppo.rewards:short</code>, if you trust this run" in page and '"score":null' in page
    assert "score, which PPO was not trained on, goes from" in page
    assert ENGLISH.html("overopt.not_on_rm") in page and "make overopt" not in page


def test_without_over_optimisation_it_says_what_to_run(copy: ReportOptions) -> None:
    (copy.run_dir / "overopt.json").unlink()
    page = write_report(copy, "").read_text(encoding="utf-8")
    assert f"run `python -m rlhf_mini.evaluation.overopt --runs_dir {copy.runs_dir} --run r`" in page
    write_json(copy.run_dir / "overopt.json", replace(STUDY, provenance={"rm_sha256": "of another"}))
    assert "Not measured for this run" in write_report(copy, "").read_text(encoding="utf-8")
    assert report.how_to(Path("runs/seed0"), "overopt") == "run `make overopt RUN=seed0`"
    assert report.how_to(Path("runs/default"), "overopt") == "run `make overopt`"


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("evaluate.json", None, "evaluate.json does not exist yet: run `python -m rlhf_mini.evaluation.evaluate"),
        ("compare.json", None, "compare.json does not exist yet: run `python -m rlhf_mini.evaluation.evaluate"),
        ("evaluate.json", "{}", "evaluate.json was written by another version of this project: run `python -m"),
        ("compare.jsonl", None, "was not compared yet: run `python -m rlhf_mini.evaluation.compare"),
        ("compare.jsonl", "", "was not compared yet"),
        ("compare.jsonl", '{"prompt": []}\n', "compare.jsonl is damaged"),
        ("compare.jsonl", "[1\n", "compare.jsonl is damaged"),
        ("compare.jsonl", json.dumps(ROWS[0] | {"stages": {"base": 0.5}}), "compare.jsonl is damaged"),
        ("compare.jsonl", json.dumps(ROWS[0] | {"prompt": [3]}), "compare.jsonl is damaged"),
        ("compare.jsonl", json.dumps(ROWS[0] | {"use_case": ["a"]}), "compare.jsonl is damaged"),
        ("sft/metrics.jsonl", "[" * 99_999, "metrics.jsonl is damaged"),
        ("overopt.json", '{"format": 1}', "overopt.json was written by another version"),
        ("evaluate.json", "[]", "evaluate.json is damaged"),
        ("ppo/stage.json", None, "the ppo checkpoint in .* is half-written"),
    ],
)
def test_what_is_missing_is_one_sentence(copy: ReportOptions, file: str, content: str | None, sentence: str) -> None:
    (copy.run_dir / "report.html").unlink()
    if content is None:
        (copy.run_dir / file).unlink()
    else:
        (copy.run_dir / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        write_report(copy, "")
    assert not (copy.run_dir / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("evaluate.json", "ppo", "0" * 64, "was evaluated before its ppo was trained again: run `python -m"),
        ("compare.json", "split", "0" * 64, "was compared again after it was evaluated: run `python -m"),
        ("evaluate.json", '"r": {', '"s": {', "evaluate.json is of another run: run `python -m"),
    ],
)
def test_an_outdated_evaluation_is_one_sentence(
    copy: ReportOptions, file: str, old: str, new: str, sentence: str
) -> None:
    content = (copy.run_dir / file).read_text(encoding="utf-8")
    if new == "0" * 64:
        compared = json.loads((copy.run_dir / "compare.json").read_text(encoding="utf-8"))["provenance"]
        old = compared["checkpoints"]["ppo"]["sha256"] if old == "ppo" else compared["split_sha256"]
    assert old in content
    (copy.run_dir / file).write_text(content.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        write_report(copy, "")


def test_an_evaluation_that_lacks_a_stage_is_one_sentence(copy: ReportOptions) -> None:
    path = copy.run_dir / "evaluate.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    del info["stages"]["ppo"]["gold"]
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"evaluate.json lacks 'gold': run `python -m rlhf_mini.evaluation.evaluate"):
        write_report(copy, "")


def test_a_reward_model_with_another_config_was_not_evaluated(copy: ReportOptions) -> None:
    """Its weights are the same, but not its score."""
    config, stage = (copy.run_dir / "rm" / name for name in ("config.json", "stage.json"))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"reward_mean": 0.5}))
    info = json.loads(stage.read_text(encoding="utf-8"))
    info["sha256"]["config.json"] = sha256(config)
    stage.write_text(json.dumps(info))
    ppo = copy.run_dir / "ppo" / "stage.json"
    info = json.loads(ppo.read_text(encoding="utf-8"))
    rm = load_checkpoint(copy.run_dir / "rm", "rm")
    for parent in info["parents"]:
        if parent["stage"] == "rm":
            parent["files_sha256"] = rm.files_sha256
    ppo.write_text(json.dumps(info))
    with pytest.raises(UserError, match="was evaluated before its rm was trained again"):
        write_report(copy, "")


def test_no_page_is_made_while_the_run_is_measured(copy: ReportOptions) -> None:
    with (
        measuring(copy.run_dir),
        pytest.raises(UserError, match=r"another process is measuring .*/runs/r: wait for it"),
    ):
        write_report(copy, "")


def test_stages_without_metrics_still_give_a_page(copy: ReportOptions) -> None:
    for stage in ("sft", "rm", "ppo"):
        (copy.run_dir / stage / "metrics.jsonl").unlink()
    assert "Learning curves" in write_report(copy, "").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--run", "nowhere"], "there is no sft checkpoint in runs/nowhere/sft"), (["--watts", "0"], "--watts must be")],
)
def test_mistakes_as_a_user_makes_them(_nano_base: Path, arguments: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "rlhf_mini.report", "--base", str(_nano_base), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode != 0 and sentence in done.stderr and len(done.stderr.splitlines()) == 1


# --- in Korean -------------------------------------------------------------------------------------------------------


def test_every_text_is_translated_and_reviewed() -> None:
    assert text_problems(english_texts(), read_translated(TEXTS / "ko.yaml")) == []


def test_every_name_in_the_data_has_a_name_in_the_page() -> None:
    named = read_texts(TEXTS / "en.yaml").keys()
    prompts = read_jsonl(ROOT / "data" / "prompts" / "test.jsonl")
    for key in ("use_case", "kind", "novel"):
        assert {f"{key}.{prompt[key]}" for prompt in prompts} <= named
    assert {f"part.{part}" for part in WEIGHTS} <= named


def test_every_text_is_used() -> None:
    sources = [path.read_text(encoding="utf-8") for path in TEXTS.parent.iterdir() if path.is_file()]
    used = set(re.findall(r"""["']([\w.]+)["']""", "\n".join(sources)))
    used |= {f"script.{key}" for key in used} | {f"curves.{key}" for key in used} | {f"work.{key}" for key in used}
    used |= {f"curve.{key}.{part}" for key in used for part in ("title", "unit", "caption")}
    names = ("part.", "use_case.", "kind.", "novel.", "content.")
    assert {key for key in read_texts(TEXTS / "en.yaml") if not key.startswith(names)} <= used


@pytest.fixture(scope="module")
def korean(made: ReportOptions) -> Path:
    """The same page in Korean, beside the English one."""
    with console.capture():
        return write_report(replace(made, language="ko", microscope_prompts=1), "the command")


def test_the_korean_page_lies_beside_the_english_one_and_has_no_english_text(made: ReportOptions, korean: Path) -> None:
    assert korean == made.run_dir / "report.ko.html" and (made.run_dir / "report.html").is_file()
    page = korean.read_text(encoding="utf-8")
    assert '<html lang="ko">' in page
    english = {str(ENGLISH.html(key)) if "{" not in text else text.partition("{")[0]
               for key, text in ENGLISH.texts.items() if KOREAN.texts[key] != text}  # fmt: skip
    assert {text for text in english if len(text.split()) > 2 and text in page} == set()
    assert "25% (23 ~ 28%)" in page and "onerror=alert(2)&gt;" in page  # a title that is not ours stays


def test_only_a_translation_of_this_very_text_is_shown() -> None:
    title = JUDGES["gold"]
    assert KOREAN.of("judge.gold", title) == "골드 점수" and ENGLISH.of("judge.gold", title) == title
    assert KOREAN.of("judge.gold", "gold score of old") == "gold score of old"  # an older evaluate.json
    assert KOREAN.of("judge.none", "a judge") == "a judge"


def test_plots_are_the_same_on_a_machine_without_korean_fonts(recwarn: pytest.WarningsRecorder) -> None:
    series = [plots.Series("학습", [0, 1], [0, 1]), plots.Series("검증", [0, 1], [1, 0], 1)]
    drawn = plots.panel("name", "제목", "가로축", "세로축", series)
    assert all(f"{text}</text>" in drawn for text in ("학습", "검증", "가로축", "세로축"))
    assert "DejaVu" not in drawn  # the browser chooses the font
    assert not recwarn.list


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as chromium:
        yield chromium


@pytest.fixture
def address(made: ReportOptions) -> str:
    return (made.run_dir / "report.html").resolve().as_uri()


@contextmanager
def watched(browser: Any, address: str) -> Iterator[Any]:
    """The open page. Whatever a test does with it: no error, no console message, no request, no dialog."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    faults: list[str] = []
    requests: list[str] = []

    def refuse(dialog: Any) -> None:
        faults.append(dialog.message)
        dialog.dismiss()

    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", refuse)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    yield page
    page.close()
    assert faults == []
    assert {url.partition("#")[0] for url in requests if not url.startswith(("data:", "blob:"))} <= {
        address, address.replace("report.html", "report.ko.html")
    }  # fmt: skip


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with watched(browser, address) as page:
        yield page


def shown(page: Any) -> str:
    return page.locator("#prompt p").last.inner_text().removeprefix("user: ")


def unfold(page: Any, *names: str) -> None:
    for name in names:
        page.locator(f"#{name} > summary").click()


def listed(page: Any) -> list[str]:
    return page.locator("#near li span:first-child").all_inner_texts()


def test_it_opens_with_the_first_prompt_side_by_side(page: Any) -> None:
    assert shown(page) == "First?"
    assert page.locator("#answers h3").all_inner_texts() == ["base", "SFT", "PPO\nbest by gold"]
    responses = page.locator("#answers .response").all_inner_texts()
    assert responses == ["Colour? (truncated)", "It is green.", "It is Paris 0."]
    assert page.locator("#place").inner_text() == f"Prompt 1 of {len(ROWS)}"
    assert page.locator("h1").count() == 1 and "#" not in page.url


def test_in_korean_the_page_speaks_korean_and_the_models_english(page: Any, korean: Path) -> None:
    page.goto(korean.as_uri())
    assert page.locator("#place").inner_text() == f"프롬프트 {len(ROWS)}개 중 1번째"
    assert page.locator("#answers .base .response").inner_text() == "Colour? (잘림)"
    assert page.locator("#answers .response[lang=en]").count() == 3
    unfold(page, "microscope", "use-cases")
    page.locator("#tokens .token").first.focus()
    length = page.locator("#tokens .token").count()
    assert page.locator("#token").inner_text().endswith(f"토큰 {length}개 중 1번째")
    assert page.locator("#use-cases th[scope=row]").first.inner_text() == "개방형 질의응답"
    assert page.evaluate("getComputedStyle(document.body).wordBreak") == "keep-all"
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


def test_filters_narrow_the_list(page: Any) -> None:
    unfold(page, "choose")
    page.select_option("[name=use]", "open_qa")
    assert listed(page) == ["Third?", "Fourth?"] and shown(page) == "Third?"
    page.check("[name=disagree]")
    assert listed(page) == ["Third?"]
    page.click("button[type=reset]")
    page.locator("#near li").nth(5).wait_for()
    page.select_option("[name=winner]", "tie")
    assert listed(page) == ["Fourth?"]
    page.select_option("[name=winner]", "ppo")
    page.select_option("[name=novel]", "none")
    assert listed(page) == ["Second?"]
    page.click("button[type=reset]")
    page.fill("[name=search]", "PARIS 3")
    assert listed(page) == ["Fourth?"]
    page.fill("[name=search]", "nothing like it")
    assert "No prompt matches" in page.locator("#place").inner_text()
    assert not page.locator("#shown").is_visible() and not page.locator("#microscope").is_visible()


def test_gains_and_losses_come_in_their_order(page: Any) -> None:
    unfold(page, "choose")
    page.click("text=largest gains")
    assert [text[:8] for text in listed(page)] == ["Second?", EVIL[:8], "First?", "Fourth?", "Third?", "Own?"]
    assert page.locator("#near .number").all_inner_texts() == ["+0.80", "+0.20", "+0.10", "0.00", "−0.80", "–"]
    assert page.locator("text=largest gains").get_attribute("aria-pressed") == "true"
    page.click("text=largest losses")
    assert listed(page)[0] == "Third?" and listed(page)[-1] == "Own?" and shown(page) == "Third?"
    page.click("text=RM against gold")
    assert shown(page) == "Third?"


def test_surprise_me_never_shows_the_same_again(page: Any) -> None:
    for _ in range(5):
        before = shown(page)
        page.click("#surprise")
        assert shown(page) != before


def test_going_on_by_button_key_and_link(page: Any, address: str) -> None:
    page.click("#next")
    assert shown(page) == "Second?" and page.url == f"{address}#prompt=t-1"
    page.keyboard.press("ArrowRight")
    assert shown(page) == "Third?"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.click("#previous")
    assert shown(page) == "Own?"  # round the end
    unfold(page, "choose")
    page.focus("[name=search]")
    page.keyboard.press("ArrowLeft")
    assert shown(page) == "Own?"  # in a field the arrows are the field's
    page.goto(f"{address}#prompt=t-3")
    assert shown(page) == "Fourth?"
    page.reload()
    assert shown(page) == "Fourth?" and page.evaluate("scrollY") > 0  # a link leads to the prompt
    page.goto(f"{address}#cost")
    page.reload()
    assert shown(page) == "First?" and page.locator("#cost table").first.is_visible()  # unfolded


def test_model_text_is_shown_as_it_is(page: Any, address: str) -> None:
    page.goto(f"{address}#prompt=t-4")
    text = "document.querySelector('#answers .ppo .response').firstChild.data"
    assert page.evaluate(text) == EVIL
    assert page.evaluate("document.querySelector('#prompt p').lastChild.data") == EVIL
    of_tokens = "[...document.querySelectorAll('.token')].slice(0, -1).map((token) => token.textContent).join('')"
    bytewise = EVIL.replace("\u2028", "\N{REPLACEMENT CHARACTER}" * 3)  # no token of this tokenizer holds all of it
    assert page.evaluate(of_tokens) == f" {bytewise}"
    assert page.locator("img").count() == 0 and page.locator("script").count() == 9


def test_the_microscope_reads_out_numbers_under_the_pointer_and_by_keyboard(page: Any, made: ReportOptions) -> None:
    unfold(page, "microscope")
    data = json.loads(page.locator("#data").text_content())
    look = data["prompts"][0]["looks"]["ppo"]
    length = len(look["text"])
    assert page.locator(".token").count() == length
    page.locator(".token").nth(3).hover()
    assert page.locator("#token").inner_text().endswith(f"token 4 of {length}")
    numbers = [float(text.replace("−", "-")) for text in page.locator("#readout dd").all_inner_texts()]
    columns = [look["logprob"], look["ref_logprob"], *look["measures"].values()]
    assert numbers == pytest.approx([column[3] for column in columns], abs=0.006)
    assert numbers[2] == pytest.approx(look["logprob"][3] - look["ref_logprob"][3], abs=0.002)  # the log-ratio
    top, ref_logprob = look["ref_top"][3], look["ref_top_logprob"][3]
    assert ref_logprob >= look["ref_logprob"][3]
    assert ("is the same" if top == look["text"][3] else json.dumps(top)) in page.locator("#ref-top").inner_text()

    page.locator(".token[tabindex='0']").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("#token").inner_text().endswith(f"token 2 of {length}")
    assert page.locator(".token[aria-selected=true]").count() == 1
    assert next(iter(data["measures"].values()))["title"] in page.locator(".token").nth(1).get_attribute("aria-label")
    page.keyboard.press("End")
    assert "⟨end⟩" in page.evaluate("document.activeElement.textContent")
    assert shown(page) == "First?"  # its arrow keys do not turn the pages


def test_another_measure_colours_anew(page: Any) -> None:
    unfold(page, "microscope")
    colours = "[...document.querySelectorAll('.token')].map((token) => getComputedStyle(token).backgroundColor)"
    seen = []
    for measure in page.locator("[name=measure]").all():
        measure.check()
        seen.append(tuple(page.evaluate(colours)))
    assert len(set(seen)) == 5
    page.check("[name=which][value=sft]")
    assert page.locator("#tokens").inner_text().split() == ["It", "is", "green.", "⟨end⟩"]
    page.click("summary:has-text('All numbers')")
    assert page.locator("#numbers tbody tr").count() == page.locator(".token").count()
    assert page.locator("#numbers th[scope=row]").count() == page.locator(".token").count()


def test_a_response_without_microscope_data_says_so(page: Any) -> None:
    unfold(page, "choose", "microscope")
    page.fill("[name=search]", "own?")
    page.check("[name=which][value=sft]")  # it was truncated before its first token
    assert page.locator("#no-look").is_visible() and not page.locator("#look").is_visible()


def test_from_a_response_to_its_tokens(page: Any) -> None:
    page.locator("#answers .sft button").click()
    assert page.locator("[name=which][value=sft]").is_checked()
    assert page.evaluate("document.activeElement.className").startswith("token")


def test_nothing_is_wider_than_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    lefts = page.locator(".answer").evaluate_all("(boxes) => boxes.map((box) => box.getBoundingClientRect().left)")
    assert len(set(lefts)) == 1  # one under the other


def test_dark_by_the_system_and_by_the_button(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    axis = "getComputedStyle(document.querySelector('svg text')).fill"
    light, light_text = page.evaluate(background), page.evaluate(axis)
    page.emulate_media(color_scheme="dark")
    dark, dark_text = page.evaluate(background), page.evaluate(axis)
    assert (light, light_text) != (dark, dark_text) and light_text != dark_text
    page.click("#theme")
    assert (page.evaluate(background), page.evaluate(axis)) == (light, light_text)
    page.click("#theme")
    assert page.evaluate(background) == dark
    page.emulate_media(media="print")
    assert page.evaluate(background) == light  # paper is white


def test_on_paper_the_prompt_stays_and_the_controls_go(page: Any) -> None:
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible() and not page.locator("#theme").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#prompt").is_visible() and page.locator("#tokens").is_visible()
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    assert len(page.pdf()) > 10_000


def test_tab_comes_to_everything_that_works(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    unfold(page, "choose", "microscope")
    page.locator("#theme").focus()
    visited = {"theme"}
    name = "((at) => at.id || at.name || at.className.split(' ')[0])(document.activeElement)"
    for _ in range(60):
        page.keyboard.press("Tab")
        visited.add(page.evaluate(name))
    expected = {"theme", "tab-explorer", "previous", "surprise", "own-prompt", "use", "search", "disagree", "which",
                "measure", "token"}  # fmt: skip
    assert expected <= visited
