"""`python -m rlhf_mini.evaluation.compare`: win rates and sums by hand, and the command on tiny random checkpoints."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PROMPTS
from transformers import AutoTokenizer

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.checkpoints import load_checkpoint, locked
from rlhf_mini.core.console import UserError, console, printable
from rlhf_mini.core.examples import Demonstration, Prompt, Response
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.rankings import Count
from rlhf_mini.evaluation import responses
from rlhf_mini.evaluation.answers import STAGES, Answer, Row, mixed, win
from rlhf_mini.evaluation.compare import CompareOptions, compare
from rlhf_mini.evaluation.evaluate import EvaluateOptions, evaluate
from rlhf_mini.evaluation.overopt.__main__ import OveroptOptions, study
from rlhf_mini.evaluation.responses import BARE_TEMPLATE, Stage, demonstration_lengths, rank_blind
from rlhf_mini.evaluation.runs import measuring
from rlhf_mini.evaluation.schema import Group
from rlhf_mini.evaluation.summary import below_sft, grouped, headline, measures_of, reward_model_accuracy
from rlhf_mini.models.text import encode_prompts

ROOT = Path(__file__).parents[2]
ANY: Prompt = {"prompt": [{"role": "user", "content": "?"}]}


class Longest:
    """Prefers the longer response."""

    name = "longest"

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        lengths = [len(response.text) for response in responses]
        return [1 + sum(other > length for other in lengths) for length in lengths]


class FirstOne(Longest):
    """Prefers whatever comes first, as careless people do."""

    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        return list(range(1, len(responses) + 1))


class Unable(Longest):
    def rank(self, example: Prompt, responses: list[Response]) -> list[int]:
        raise UserError("no check")


def said(*texts: str) -> list[Response]:
    return [Response(text, True) for text in texts]


def test_ranks_come_back_in_the_order_of_the_responses() -> None:
    for seed in range(8):  # all orders come up
        rng = random.Random(seed)
        assert rank_blind(Longest(), ANY, said("four", "one", "seven"), rng) == [2, 3, 1]
        assert rank_blind(Longest(), ANY, said("two", "six", "seven"), rng) == [2, 2, 1]


def test_a_judge_who_goes_by_the_order_finds_nobody_better() -> None:
    rng = random.Random(0)
    ranks = [rank_blind(FirstOne(), ANY, said("a", "b", "c"), rng) for _ in range(1500)]
    firsts = [[rank[place] for rank in ranks].count(1) for place in range(3)]
    assert sum(firsts) == 1500 and all(first == pytest.approx(500, abs=60) for first in firsts)


def test_a_judge_who_cannot_judge_is_left_out() -> None:
    assert rank_blind(Unable(), ANY, said("a", "b"), random.Random(0)) == [None, None]


def answer(gold: float | None, ranks: dict[str, int | None], **other: Any) -> Answer:
    parts = None if gold is None else {"task": gold, "truthful": None}
    usual: dict[str, Any] = dict(response="", ended=True, tokens=4, words=3, ids=[], rm_score=0.0, kl=None)
    return Answer(**usual | other, gold=gold, parts=parts, ranks=ranks)


def test_wins() -> None:
    first, tied, last = (answer(None, {"a": rank, "b": None}) for rank in (1, 1, 3))
    assert [win(first, last, "a"), win(last, first, "a"), win(first, tied, "a")] == [1.0, 0.0, 0.5]
    assert win(first, last, "b") is None


ROWS = [
    Row(
        {**ANY, "use_case": "chat", "novel": "none"},
        {
            "base": answer(0.0, {"a": 3, "b": 3, "gold": 3}, ended=False),
            "sft": answer(0.5, {"a": 2, "b": 1, "gold": 2}),
            "ppo": answer(1.0, {"a": 1, "b": 1, "gold": 1}, kl=3.0, tokens=9),
        },
    ),
    Row(
        {**ANY, "use_case": "extract", "novel": "both"},
        {
            "base": answer(0.25, {"a": 1, "b": 3, "gold": 2}),
            "sft": answer(0.75, {"a": 1, "b": 1, "gold": 1}),
            "ppo": answer(0.25, {"a": 3, "b": 2, "gold": 2}, kl=1.0, tokens=3),
        },
    ),
]


def test_a_row_is_a_line_of_json() -> None:
    line = ROWS[0].to_json()
    assert list(line) == ["prompt", "use_case", "novel", "stages"] and list(line["stages"]) == list(STAGES)
    assert list(line["stages"]["ppo"]) == [
        "response", "ended", "tokens", "words", "ids", "rm_score", "gold", "parts", "kl", "ranks",
        "reference_score",
    ]  # fmt: skip
    assert json.loads(json.dumps(line)) == line


def means(groups: dict[str, Group], group: str, stage: str) -> dict[str, float]:
    return {measure: estimate.mean for measure, estimate in groups[group].stages[stage].items()}


def test_sums_by_hand() -> None:
    groups = grouped(ROWS, {"all": 4.0, "use_case/chat": 6.0})
    assert list(groups) == ["all", "use_case/chat", "use_case/extract", "novel/none", "novel/both"]
    assert [group.prompts for group in groups.values()] == [2, 1, 1, 1, 1]
    ppo, base = means(groups, "all", "ppo"), means(groups, "all", "base")
    assert ppo["gold"] == ppo["task"] == 0.625
    assert math.isnan(ppo["truthful"])  # applies to none of the prompts
    assert ppo["gold_minus_sft"] == 0.0  # +0.5 and -0.5
    assert ppo["wins/heldout"] == 0.375  # (1 + 1/2) / 2 and 0
    assert (ppo["wins/a"], ppo["wins/b"], ppo["wins/gold"]) == (0.5, 0.25, 0.5)
    assert (ppo["kl"], ppo["tokens"], ppo["length_ratio"], ppo["eos"]) == (2.0, 6.0, 1.5, 1.0)
    assert means(groups, "use_case/chat", "ppo")["length_ratio"] == 1.5  # 9 tokens over 6
    assert means(groups, "use_case/extract", "ppo")["length_ratio"] == 0.75  # no demonstration of it: over those of all
    assert (base["wins/heldout"], base["eos"]) == (0.125, 0.5)
    assert math.isnan(base["kl"])
    assert math.isnan(means(groups, "all", "sft")["wins/heldout"])


def test_headline_and_use_cases_below_sft() -> None:
    groups = grouped(ROWS, {"all": 4.0})
    estimates = headline(groups, {})
    assert estimates["sft_beats_base/gold"] == Estimate(1.0, 1.0, 1.0)
    assert estimates["sft_beats_base/heldout"] == Estimate(0.875, 0.75, 1.0)  # one prompt gives 3/4, the other 1
    assert below_sft(groups) == ["extract"]


def test_a_prompt_without_gold_is_left_out_of_the_mean() -> None:
    unknown = Row(ANY, {name: answer(None, {"a": None, "b": None, "gold": None}) for name in STAGES})
    assert math.isnan(measures_of(unknown, "ppo")["gold_minus_sft"])
    assert math.isnan(measures_of(unknown, "ppo")["wins/heldout"])
    groups = grouped([*ROWS, unknown], {"all": 4.0})
    assert means(groups, "all", "ppo")["gold"] == 0.625
    assert groups["all"].prompts == 3


def test_accuracy_ceiling_agreement_and_gap() -> None:
    counts = [(Count(3, 4), Count(4, 4), Count(2, 2)), (Count(0, 4), Count(3, 4), Count(1, 2))]
    estimates = reward_model_accuracy(counts)
    means = {name.removesuffix("_heldout"): estimate.mean for name, estimate in estimates.items()}
    assert means == {"accuracy": 0.375, "ceiling": 0.875, "agreement": 0.75, "gap": -0.375}
    # Either prompt alone has a gap of -1/4 or of -1/2: drawing them with replacement gives one of the three.
    assert (estimates["gap_heldout"].low, estimates["gap_heldout"].high) == (-0.5, -0.25)
    assert reward_model_accuracy([]) == {}


def test_golds_own_ranking_is_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sft:
        def encode(self, prompts: list[Any]) -> list[Any]:
            return prompts

        def respond(self, *args: Any) -> list[Response]:
            return said("Paris.", "The capital of France is Cairo.", "The capital of France is Paris.")

    monkeypatch.setattr(responses, "score_texts", lambda *args: [0.0, 2.0, 1.0])
    check = {"fact": "countries/France/capital", "max_words": 9}  # gold: 1st and 3rd tied, 2nd last
    prompt: Prompt = {"prompt": [{"role": "user", "content": "What is the capital of France?"}], "check": check}
    rm = Stage(None, None)
    sampling = responses.Sampling(6, 0.7, 0)
    (counts,) = responses.reward_model_counts(Sft(), rm, [prompt], [Longest()], sampling, 3)  # type: ignore[arg-type]
    # Longest orders 2nd = 3rd before 1st (31 letters each): pairs (2nd, 1st) and (3rd, 1st).
    assert counts == (Count(2, 2), Count(0.5, 2), Count(0, 0))
    (counts,) = responses.reward_model_counts(Sft(), rm, [ANY], [Longest()], sampling, 3)  # type: ignore[arg-type]
    assert counts[:2] == (Count(2, 2), Count(0, 0))


def test_prompts_shown_are_of_different_use_cases() -> None:
    rows = [{"use_case": use_case, "id": number} for use_case in "aaaaaaab" for number in range(5)]

    def drawn(number: int, seed: int) -> list[dict[str, Any]]:
        return mixed(rows, lambda row: row["use_case"], number, seed)

    for seed in range(5):
        assert {row["use_case"] for row in drawn(2, seed)} == {"a", "b"}
    assert drawn(4, 0) == drawn(4, 0) != drawn(4, 1)
    assert len(drawn(100, 0)) == len(rows)


def test_the_base_gets_plain_text(nano_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    tokenizer.chat_template = BARE_TEMPLATE
    prompt = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": " 3"},
    ]
    (encoded,) = encode_prompts(tokenizer, [prompt])
    assert encoded.ids == tokenizer("One?\nTwo.\n 3\n")["input_ids"]


def test_length_of_demonstrations(nano_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    texts = [("chat", "ab"), ("extract", "Paris is the capital of France.")]
    demonstrations: list[Demonstration] = [
        {**ANY, "use_case": use_case, "completion": [{"role": "assistant", "content": text}]}
        for use_case, text in texts
    ]
    one, other = (len(tokenizer(text)["input_ids"]) + 1 for _, text in texts)
    assert demonstration_lengths(demonstrations, tokenizer) == {
        "all": (one + other) / 2,
        "use_case/chat": one,
        "use_case/extract": other,
    }


def test_model_text_is_only_text() -> None:
    assert printable("[bold]a[/bold]\n\x1b[2Jb") == "[bold]a[/bold]\n\N{REPLACEMENT CHARACTER}[2Jb"


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def options(nano_run: CompareOptions) -> CompareOptions:
    return nano_run


def test_the_whole_comparison(options: CompareOptions) -> None:
    with console.capture() as printed:
        compare(options, "the command")
    text = printed.get()
    assert sum(example["prompt"][0]["content"] in text for example in PROMPTS) == 3
    for expected in ("base", "sft", "ppo", "courteous", "other", "all", "PPO beats SFT, held-out labelers"):
        assert expected in text

    rows = [json.loads(line) for line in (options.run_dir / "compare.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [example["id"] for example in PROMPTS]
    for row in rows:
        base, sft, ppo = (row["stages"][name] for name in STAGES)
        measured = {"response", "ended", "tokens", "words", "ids", "rm_score", "gold", "parts", "kl", "ranks"}
        measured |= {"reference_score"}
        assert measured == set(base) == set(sft) == set(ppo)
        assert base["kl"] is None and sft["kl"] == 0.0 and ppo["kl"] != 0.0
        assert ppo["ranks"].pop("references") is sft["ranks"].pop("references") is None  # these prompts have none
        assert len(ppo["ranks"]) == 4 and {*sft["ranks"].values(), *ppo["ranks"].values()} <= {1, 2, 3}
        assert max(base["tokens"], sft["tokens"], ppo["tokens"]) <= 6

    summary = json.loads((options.run_dir / "compare.json").read_text(encoding="utf-8"))
    ppo_estimates = summary["groups"]["all"]["stages"]["ppo"]
    assert ppo_estimates["kl"]["mean"] == pytest.approx(sum(row["stages"]["ppo"]["kl"] for row in rows) / 4)
    assert ppo_estimates["kl"]["low"] <= ppo_estimates["kl"]["mean"] <= ppo_estimates["kl"]["high"]
    assert summary["headline"]["kl"] == ppo_estimates["kl"]
    reward_model = {f"rm/{name}_heldout" for name in ("accuracy", "ceiling", "agreement", "gap")}
    assert reward_model <= set(summary["headline"])
    provenance = summary["provenance"]
    assert provenance["command"] == "the command"
    assert provenance["checkpoints"]["ppo"]["sha256"] == load_checkpoint(options.run_dir / "ppo", "ppo").sha256
    written = ["compare.json", "compare.jsonl"]
    assert sorted(path.name for path in options.run_dir.iterdir()) == [*written, "ppo", "rm", "sft"]

    before = [(options.run_dir / name).read_bytes() for name in written]
    with console.capture():
        compare(options, "the command")
    assert [(options.run_dir / name).read_bytes() for name in written] == before


def test_a_run_is_measured_by_one_process_at_a_time(options: CompareOptions) -> None:
    """compare.jsonl of one and compare.json of another would not belong together."""
    names = ("runs_dir", "run", "base", "split")
    same = EvaluateOptions(**{name: getattr(options, name) for name in names})
    with measuring(options.run_dir):
        for measure in (lambda: compare(options, ""), lambda: evaluate(same, "")):
            with pytest.raises(UserError, match=r"^another process is measuring .*/runs/r: wait for it, or choose"):
                measure()
    with (
        locked(options.run_dir / "overopt"),
        pytest.raises(UserError, match=r"another process is writing .*/r/overopt"),
    ):
        study(OveroptOptions(run=options.run, runs_dir=options.runs_dir), "")
    assert sorted(path.name for path in options.run_dir.iterdir()) == ["ppo", "rm", "sft"]


@pytest.mark.parametrize(
    ("prompt", "gold"), [("Say [b]hello[/b] :smile:", "no gold"), ("Write about a cat.", "gold 0.")]
)
def test_a_prompt_of_ones_own(options: CompareOptions, prompt: str, gold: str) -> None:
    options.prompt = prompt
    with console.capture() as printed:
        compare(options, "")
    assert f"user: {prompt}" in printed.get() and printed.get().count(gold) == 3
    assert sorted(path.name for path in options.run_dir.iterdir()) == ["ppo", "rm", "sft"]


def test_prompts_without_a_check(options: CompareOptions) -> None:
    write_jsonl(options.split, [{"prompt": example["prompt"]} for example in PROMPTS])
    with console.capture() as printed:
        compare(options, "")
    assert "no gold" in printed.get()
    summary = json.loads((options.run_dir / "compare.json").read_text(encoding="utf-8"))
    assert summary["headline"]["gold/ppo"] == {"mean": None, "low": None, "high": None}
    assert summary["headline"]["kl"]["mean"] is not None
    assert list(summary["groups"]) == ["all"]


@pytest.mark.parametrize("stage", ["sft", "rm", "ppo"])
def test_a_missing_stage_is_one_sentence(options: CompareOptions, stage: str) -> None:
    (options.run_dir / stage).rename(options.run_dir / "elsewhere")
    with pytest.raises(UserError, match=f"there is no {stage} checkpoint in .*: run `python -m stages.{stage} "):
        compare(options, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--run", "nowhere"], "there is no sft checkpoint in runs/nowhere/sft: run `make sft RUN=nowhere`"),
        (["--temperature", "-1"], "--temperature must be at least 0, not -1"),
        (["--prompt", " "], "--prompt is blank"),
        (["--prompt", "\udcff"], "--prompt is not UTF-8"),
        (["--promt", "a"], "unknown option --promt"),
    ],
)
def test_mistakes_as_a_user_makes_them(nano_base: Path, arguments: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "rlhf_mini.evaluation.compare", "--base", str(nano_base), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode != 0
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_prompt_of_ones_own_beside_files_that_are_no_prompts(
    nano_run: CompareOptions, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in a narrow terminal, where the responses stand below each other, whole."""
    (Path(nano_run.split).parent / "a.jsonl").write_text("no JSON")
    nano_run.prompt = PROMPTS[0]["prompt"][0]["content"]
    for width, side_by_side in ((80, True), (40, False)):
        monkeypatch.setattr(console, "width", width)
        compare(nano_run, "")
        said = capsys.readouterr().out
        assert said.count("RM ") == 3 and said.count("gold ") == 3 and ("│" in said) == side_by_side
        assert max(map(len, said.splitlines())) <= max(width, len(str(nano_run.run_dir)) + 90)
