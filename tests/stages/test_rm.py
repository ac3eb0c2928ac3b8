"""The reward model's stage end to end on a tiny model. Its toy labelers like the longer response."""

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from trl import RewardConfig, RewardTrainer
from trl_oracle import assert_trains_like_trl

from rlhf_mini.core.checkpoints import load_checkpoint, save_checkpoint, writing
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Response, read_rankings
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.options import parse_options
from rlhf_mini.core.rankings import Count, pairs
from rlhf_mini.models.scoring import (
    attach_reader,
    load_reward_model,
    mean_likelihoods,
    reward_scores,
    score_texts,
    with_scalar_head,
)
from rlhf_mini.models.text import encode_prompts
from rlhf_mini.world.heldout import core, held_out_prompts
from rlhf_mini.world.judge import JudgeOptions, rankings, train_judge
from rlhf_mini.world.knowledge import load
from stages.rm import agreement, content, likelihood
from stages.rm.agreement import simulated_evaluation, summary
from stages.rm.loss import k_wise_loss
from stages.rm.options import RMOptions
from stages.rm.rankings import encode, ordered, rank, split_by_prompt
from stages.rm.sources import distinct, exchange, most_different
from stages.rm.train import objective, score_responses, train_rm
from stages.sft.options import SFTOptions
from stages.sft.train import train_sft


class LikesLength:
    name = "toy"

    def rank(self, example, responses):
        return [1 + sum(len(other.text) > len(one.text) for other in responses) for one in responses]


class CannotJudge:
    name = "helpless"

    def rank(self, example, responses):
        raise UserError("this labeler cannot judge this prompt")


class LikesBrevity(LikesLength):
    name = "brief"

    def rank(self, example, responses):
        return [1 + sum(len(other.text) < len(one.text) for other in responses) for one in responses]


class LikesTheFirst(LikesLength):
    name = "first"

    def rank(self, example, responses):
        return [1] + [2] * (len(responses) - 1)


class RefusesPairs(LikesLength):
    name = "picky"

    def rank(self, example, responses):
        if len(responses) == 2 and example["id"] >= "p-2000":
            raise UserError("a pair is too little")
        return super().rank(example, responses)


def picky_labelers():
    return [RefusesPairs()]


def brief_labelers():
    return [LikesBrevity(), LikesBrevity(), LikesBrevity()]


def toy_labelers():
    return [LikesLength(), LikesLength()]


def helpless_labelers():
    return [CannotJudge()]


def prompt(number: int, **keys: Any) -> Any:
    return {"id": f"p-{number}", "prompt": [{"role": "user", "content": f"Say {number}"}], **keys}


def ranking(number: int, responses: list[str], ranks: list[int], **keys: Any) -> Any:
    return prompt(number, responses=responses, ranks=ranks, **keys)


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(["it", "is", "green"], k=rng.randint(1, 9)))


@pytest.fixture(scope="module")
def world(_nano_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with examples, and an SFT checkpoint whose responses differ in length."""
    folder = tmp_path_factory.mktemp("rm")
    rng = random.Random(0)
    completions = [[{"role": "assistant", "content": text(rng)}] for _ in range(300)]
    demonstrations = [{**prompt(n), "completion": completion} for n, completion in enumerate(completions)]
    write_jsonl(folder / "demonstrations.jsonl", demonstrations)
    write_jsonl(folder / "prompts.jsonl", [prompt(n, check={}) for n in range(1000, 1120)])
    write_jsonl(folder / "foreign.jsonl", [prompt(n) for n in range(1000, 1040)])
    write_jsonl(folder / "validation.jsonl", [prompt(n) for n in range(2000, 2030)])
    train_sft(
        SFTOptions(
            base=str(_nano_base),
            demonstrations=str(folder / "demonstrations.jsonl"),
            runs_dir=str(folder / "runs"),
            run="t",
            num_train_epochs=4,
            learning_rate=1e-2,
            show_every=0,
            ptx_coef=0.0,
        )
    )
    return folder


def options_for(world: Path, **changes) -> RMOptions:
    toy = f"{__name__}:toy_labelers"
    defaults = dict(
        runs_dir=str(world / "runs"),
        run="t",
        prompts=str(world / "prompts.jsonl"),
        validation=str(world / "validation.jsonl"),
        demonstrations=str(world / "demonstrations.jsonl"),
        labelers=toy,
        heldout_labelers=toy,
        gold_labeler=toy,
        content="",
        init="sft",
        likelihood=False,
        base="",
        exchange=False,
        num_responses=4,
        num_samples=4,
        wide_temperature=0.7,
        batch_size=8,
        num_train_epochs=3,
        learning_rate=5e-3,
        max_new_tokens=24,
    )
    return RMOptions(**{**defaults, **changes})


def test_a_labeler_that_refuses_after_training_costs_a_figure_alone(world, capsys):
    train_rm(options_for(world, labelers=f"{__name__}:picky_labelers", num_responses=2))
    metrics = stage_json(world, "rm")["metrics"]
    assert "accuracy/training" in metrics and "accuracy/rankings" not in metrics
    assert "no accuracy on rankings of validation prompts: a pair is too little" in capsys.readouterr().out


def test_overfitting_is_measured_on_prompts_like_those_of_training(world):
    of_both = [prompt(n, novel=["none", "entity", "phrasing"][n % 3]) for n in range(2000, 2030)]
    write_jsonl(world / "novel.jsonl", of_both)
    train_rm(options_for(world, validation=str(world / "novel.jsonl")))
    metrics = stage_json(world, "rm")["metrics"]
    assert metrics["accuracy/rankings"]["prompts"] == 10 and metrics["accuracy/training"]["prompts"] > 20


def stage_json(world: Path, stage: str) -> dict:
    return json.loads((world / "runs" / "t" / stage / "stage.json").read_text())


def test_learns_the_labelers_taste(world, capsys):
    train_rm(options_for(world))
    info = stage_json(world, "rm")
    metrics = info["metrics"]
    # 30 prompts that were not trained on; chance is 50 %
    assert metrics["accuracy/heldout"]["low"] > 0.85
    assert metrics["accuracy/heldout"]["prompts"] > 20
    assert metrics["agreement/training"]["share"] == 1.0  # the toy labelers are all alike
    assert metrics["rankings_held_out"] == 0 and metrics["accuracy/rankings"]["prompts"] == 30  # validation prompts
    assert "RM on held-out labelers" in capsys.readouterr().out
    assert info["parents"] == [
        {**info["parents"][0], "stage": "sft", "sha256": stage_json(world, "sft")["sha256"]["model.safetensors"]}
    ]

    rankings = read_rankings(world / "runs" / "t" / "rm" / "rankings.jsonl")
    assert len(rankings) == metrics["rankings"] > 100
    for each in rankings:
        responses = list(zip(each["responses"], each["ended"], strict=True))
        assert 2 <= len(set(responses)) == len(responses) <= 4
        assert each["ranks"] == LikesLength().rank(each, [Response(*one) for one in responses])
        assert each["id"].startswith("p-") and each["labeler"] == "toy"


def test_each_group_of_labelers_has_its_own_shares():
    groups = [[Response(text, True) for text in ("a", "aaa", "aa")], [Response(text, True) for text in ("aa", "a")]]
    scores = [[1.0, 3.0, 2.0], [1.0, 2.0]]  # by length in the first group, against it in the second
    labelers: Any = {"training": toy_labelers(), "heldout": brief_labelers(), "gold": [LikesTheFirst()]}
    shares = simulated_evaluation(scores, [prompt(1), prompt(2)], groups, labelers)
    assert {key: (share["share"], share["pairs"]) for key, share in shares.items()} == {
        "accuracy/training": (6 / 8, 8),  # two labelers, three pairs and one
        "accuracy/heldout": (3 / 12, 12),
        "accuracy/gold": (0.0, 3),  # its first response has the lowest score in either group
        "agreement/training": (1.0, 4),
        "agreement/heldout": (1.0, 12),
        "agreement/training_heldout": (0.0, 24),
    }


def test_the_heldout_labelers_rank_nothing_that_is_trained_on(world: Path) -> None:
    """Training labelers like length; the others, who like brevity, are met only where accuracy is measured."""
    train_rm(options_for(world, heldout_labelers=f"{__name__}:brief_labelers", num_prompts=60))
    metrics = stage_json(world, "rm")["metrics"]
    assert {one["labeler"] for one in read_rankings(world / "runs" / "t" / "rm" / "rankings.jsonl")} == {"toy"}
    assert metrics["accuracy/training"]["share"] > 0.7 and metrics["accuracy/heldout"]["share"] < 0.3
    assert metrics["accuracy/heldout"]["share"] == pytest.approx(1 - metrics["accuracy/training"]["share"])
    assert metrics["agreement/training_heldout"]["share"] == 0
    assert metrics["agreement/heldout"]["pairs"] == 3 * metrics["agreement/training"]["pairs"]


def test_the_checkpoint_loads_plainly_and_demonstrations_score_0(world):
    train_rm(options_for(world, normalization_size=1000, likelihood=True))
    folder = world / "runs" / "t" / "rm"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1 and model.config.pad_token_id == tokenizer.pad_token_id
    lines = [json.loads(line) for line in (world / "demonstrations.jsonl").read_text().splitlines()]
    responses = [Response(line["completion"][0]["content"], True) for line in lines]
    prompts = encode_prompts(tokenizer, [line["prompt"] for line in lines])
    scores = score_texts(load_reward_model(folder), tokenizer, prompts, responses)
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)
    assert torch.tensor(scores).std() > 0.1

    # transformers' own forward and ours read the same place; they differ by the constant
    pad = tokenizer.pad_token_id
    padded = torch.tensor([[5, 6, 7, pad, pad], [5, 6, 7, 8, 9]])
    with torch.no_grad():
        logits = model(padded, attention_mask=(padded != pad).long()).logits.squeeze(-1)
        ours = reward_scores(model, [[5], [5, 6, 7]], [[6, 7], [8, 9]])
    torch.testing.assert_close(ours, logits - model.config.reward_mean)


def test_prompts_that_labelers_cannot_judge(world, capsys):
    """Prompts without a check: a tenth of the rankings is held out, and the comparison with labelers is left out."""
    helpless = f"{__name__}:helpless_labelers"
    train_rm(options_for(world, prompts=str(world / "foreign.jsonl"), gold_labeler=helpless))
    metrics = stage_json(world, "rm")["metrics"]
    assert metrics["rankings_held_out"] == 4 and metrics["accuracy/rankings"]["prompts"] == 4
    assert "accuracy/gold" not in metrics
    assert "cannot judge this prompt" in capsys.readouterr().out


def test_trains_on_a_rankings_file(world):
    rng = random.Random(1)
    rankings = []
    for number in range(120):  # people rank two to five responses, and like short ones here
        responses = [Response(answer, True) for answer in {text(rng) for _ in range(rng.randint(3, 5))}]
        if len(responses) >= 2:
            order = [1 + sum(len(other.text) < len(one.text) for other in responses) for one in responses]
            texts = [response.text for response in responses]
            rankings.append(ranking(number, texts, order))
    write_jsonl(world / "people.jsonl", rankings)
    train_rm(options_for(world, rankings=str(world / "people.jsonl"), prompts="nowhere.jsonl", num_train_epochs=2))
    metrics = stage_json(world, "rm")["metrics"]
    assert metrics["rankings"] + metrics["rankings_held_out"] == len(rankings)
    assert metrics["accuracy/rankings"]["share"] > 0.85
    assert metrics["accuracy/heldout"]["share"] < 0.3  # the toy labelers like the opposite
    assert read_rankings(world / "runs" / "t" / "rm" / "rankings.jsonl") == rankings


def preference(number: int, chosen: str, rejected: str, **keys: Any) -> Any:
    replies = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return prompt(number, chosen=replies[0], rejected=replies[1], **keys)


def test_measures_content_without_a_change_of_the_weights(world, capsys):
    longer = [preference(n, "green is it is green it is", "it is", kind="length", novel="none") for n in range(20)]
    shorter = [
        preference(n, "it is", "green is it is green it is", kind="length", novel="entity") for n in range(20, 30)
    ]
    too_long = [preference(30, "it", "zx " * 200, kind="length", novel="entity")]
    write_jsonl(world / "content.jsonl", [*longer, *shorter, *too_long, preference(31, "green is it", "is")])
    weights = []
    for file in ("", str(world / "content.jsonl")):
        capsys.readouterr()
        train_rm(options_for(world, content=file))
        weights.append(stage_json(world, "rm")["sha256"]["model.safetensors"])
        said, metrics = capsys.readouterr().out, stage_json(world, "rm")["metrics"]
        found = {key: share for key, share in metrics.items() if key.startswith("content/")}
        assert bool(found) == ("same manners, different content" in said) == bool(file)
    assert weights[0] == weights[1]
    assert set(found) == {"content/length/seen", "content/length/new", "content/all/seen"}  # no kind: all of them
    assert found["content/length/seen"]["share"] > 0.9 and found["content/length/seen"]["pairs"] == 20
    assert found["content/length/new"]["share"] < 0.1 and found["content/length/new"]["pairs"] == 10


def test_measures_content_after_training_on_a_rankings_file(world):
    write_jsonl(world / "file.jsonl", [ranking(n, ["it is", "it"], [1, 2]) for n in range(20)])
    pairs_of_the_world = "data/content/validation.jsonl"
    train_rm(options_for(world, rankings=str(world / "file.jsonl"), prompts="nowhere", content=pairs_of_the_world))
    metrics = stage_json(world, "rm")["metrics"]
    assert metrics["content/fact/seen"]["pairs"] > 10 and metrics["accuracy/rankings"]["prompts"] == 2


def test_shares_of_content_follow_from_the_scores(world, capsys):
    tokenizer = AutoTokenizer.from_pretrained(world / "runs" / "t" / "sft")
    model = with_scalar_head(world / "runs" / "t" / "sft", seed=0)
    parts = [("fact", "none"), ("fact", "entity"), ("myth", "phrasing")]
    made = [preference(n, "a", "b", kind=kind, novel=novel) for kind, novel in parts for n in range(4)]
    pairs = content.encode(model, tokenizer, made)
    scores = [(2.0, 1.0), (1.0, 2.0), (1.0, 1.0), (3.0, 0.0), *4 * [(0.0, 1.0)], *4 * [(1.0, -1.0)]]
    shares = content.evaluation(pairs, scores)
    found = {key: (share["share"], share["pairs"]) for key, share in shares.items()}
    assert found == {  # equal scores are half right
        "content/fact/seen": (2.5 / 4, 4), "content/fact/new": (0.0, 4), "content/myth/new": (1.0, 4),
    }  # fmt: skip
    both = content.scores_of(model, tokenizer, pairs[:1])
    ids = [pairs[0].prompt.ids + said.ids for said in (pairs[0].chosen, pairs[0].rejected)]
    alone = [model(torch.tensor([each])).logits.item() for each in ids]
    assert both[0] == pytest.approx(alone, abs=1e-5) and ids[0][-1] == tokenizer.eos_token_id


def test_a_batch_of_different_k_scores_as_each_prompt_alone(world):
    """The objective of a batch against one response at a time."""
    folder = world / "runs" / "t" / "sft"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = with_scalar_head(folder, seed=0).eval()
    assert model.score.weight.std().item() == pytest.approx(33**-0.5, rel=0.5)
    rankings = [
        ranking(1, ["it is", "green", "is is is it"], [1, 2, 3], ended=[True, False, True]),
        ranking(2222, ["it", "green green"], [2, 1]),
        ranking(3, ["tied", "also tied"], [1, 1]),
    ]
    examples = encode(model, tokenizer, ordered(rankings))
    assert [example.ranks for example in examples] == [[1, 2, 3], [2, 1]]  # nothing to learn from a tie
    assert [ids[-1] == tokenizer.eos_token_id for ids in examples[0].input_ids] == [True, False, True]
    loss, metrics = objective(model, examples)
    alone, right = [], []
    for example in examples:
        scores = torch.stack([model(torch.tensor([ids])).logits[0, 0] for ids in example.input_ids])[None]
        ranks = torch.tensor([example.ranks])
        alone.append(k_wise_loss(scores, ranks, torch.ones_like(ranks, dtype=torch.bool)))
        right += [bool(scores[0, i] > scores[0, j]) for i, j in pairs(example.ranks)]
    torch.testing.assert_close(loss, torch.stack(alone).mean())
    assert len(right) == 4 and metrics["accuracy"].item() == pytest.approx(sum(right) / 4)


def test_trains_as_trl_does_on_pairs(world, tmp_path):
    """TRL's RewardTrainer knows one chosen and one rejected response: K = 2."""
    folder = world / "runs" / "t" / "sft"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = with_scalar_head(folder, seed=0).double()
    model.config.pad_token_id = tokenizer.pad_token_id
    rng = random.Random(2)
    rankings = []
    for number in range(24):
        better, worse = text(rng) + " it", text(rng) + " is"
        responses, ranks = ([better, worse], [1, 2]) if rng.random() < 0.5 else ([worse, better], [2, 1])
        rankings.append(ranking(number, responses, ranks))

    def said(content: str) -> list[dict]:
        return [{"role": "assistant", "content": content}]

    rows = [
        {
            "prompt": each["prompt"],
            "chosen": said(each["responses"][each["ranks"].index(1)]),
            "rejected": said(each["responses"][each["ranks"].index(2)]),
        }
        for each in rankings
    ]

    def trl_trainer(model: PreTrainedModel, settings: dict, dataset: Dataset) -> RewardTrainer:
        config = RewardConfig(**settings)
        return RewardTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)

    options = RMOptions(batch_size=4, num_train_epochs=1.5, learning_rate=3e-3, weight_decay=0.1, save_steps=0, seed=5)
    examples = encode(model, tokenizer, rankings)
    assert_trains_like_trl(trl_trainer, model, rows, examples, objective, options, tmp_path)


def test_each_prompt_has_one_labeler_drawn_by_the_seed():
    class Named(LikesLength):
        def __init__(self, name):
            self.name = name

    labelers = [Named("a"), Named("b"), Named("c")]
    prompts = [prompt(n) for n in range(300)]
    groups = [[Response("it", True), Response("is it", True)] for _ in prompts]
    names = [each["labeler"] for each in rank(prompts, groups, labelers, seed=0)]
    assert names == [each["labeler"] for each in rank(prompts, groups, labelers, seed=0)]
    assert all(70 < names.count(name) < 130 for name in "abc")
    assert rank(prompts[:1], [[Response("it", True)]], labelers, seed=0) == []


def test_rankings_of_one_prompt_stay_on_one_side():
    rankings = [ranking(n % 20, ["a", "b"], [1, 2]) for n in range(60)]
    train_on, measure_on = split_by_prompt(rankings, 0.1, seed=0)
    assert len(train_on) == 54 and len(measure_on) == 6
    assert not {r["id"] for r in train_on} & {r["id"] for r in measure_on}
    with pytest.raises(UserError, match="all of one prompt"):
        split_by_prompt(rankings[:1], 0.1, seed=0)


def test_rankings_of_ties_alone_are_left_out_of_training_and_evaluation(world, capsys):
    """Those that would be held out, above all: accuracy on them is no number."""
    rankings = [ranking(n, ["it is", "it"], [1, 2] if n < 10 else [1, 1]) for n in range(200)]
    write_jsonl(world / "ties.jsonl", rankings)
    train_rm(options_for(world, rankings=str(world / "ties.jsonl"), num_train_epochs=1))
    metrics = stage_json(world, "rm")["metrics"]
    assert (metrics["rankings"], metrics["rankings_held_out"], metrics["accuracy/rankings"]["pairs"]) == (9, 1, 1)
    assert "190 of 200 rankings are left out: all ties" in capsys.readouterr().out


def test_a_summary_counts_pairs_and_draws_prompts():
    got = summary([Count(3, 4), Count(1, 4), Count(2, 4), Count(4, 4)] * 10 + [Count(0, 0)])
    assert (got["share"], got["pairs"], got["prompts"]) == (100 / 160, 160, 40)
    # the standard error over 40 prompts of mean 0.625 and deviation 0.28 is 0.044
    assert got["low"] < 0.625 < got["high"] and got["high"] - got["low"] == pytest.approx(4 * 0.0442, rel=0.15)


def test_bad_input_is_told_in_a_sentence(world, tmp_path, capsys, monkeypatch):
    with pytest.raises(UserError, match="no sft checkpoint"):
        train_rm(options_for(world, run="nobody"))
    with pytest.raises(UserError, match="no module nowhere"):
        train_rm(options_for(world, labelers="nowhere:f"))
    tied = [ranking(n, ["it", "is"], [1, 1]) for n in range(5)]
    write_jsonl(tmp_path / "tied.jsonl", tied)
    with pytest.raises(UserError, match="nothing to learn from"):
        train_rm(options_for(world, rankings=str(tmp_path / "tied.jsonl")))
    long = [ranking(n, ["it", "zx " * 200], [1, 2]) for n in range(5)]
    write_jsonl(tmp_path / "long.jsonl", long)
    with pytest.raises(UserError, match="no ranking fits the model's context of 192 tokens"):
        train_rm(options_for(world, rankings=str(tmp_path / "long.jsonl")))
    monkeypatch.setattr("stages.rm.train.collect", None)  # all of this is known before any work
    monkeypatch.setattr("stages.rm.train.train", None)
    endless = prompt(1, check={})
    endless["prompt"][0]["content"] = "zx " * 60
    write_jsonl(tmp_path / "endless.jsonl", [endless])
    for changes in ({"prompts": str(tmp_path / "endless.jsonl")}, {"validation": str(tmp_path / "endless.jsonl")}):
        with pytest.raises(UserError, match="no prompt leaves room for --max_new_tokens 40"):
            train_rm(options_for(world, **changes, max_new_tokens=40))
    twice = [ranking(n, ["it", "it"], [1, 2]) for n in range(5, 7)]
    write_jsonl(tmp_path / "twice.jsonl", twice)
    with pytest.raises(UserError, match="no rankings: line 1 is rejected, a response stands there twice"):
        train_rm(options_for(world, rankings=str(tmp_path / "twice.jsonl")))
    write_jsonl(tmp_path / "mixed.jsonl", [*(ranking(n, ["it", "is"], [1, 2]) for n in range(5)), *twice])
    with pytest.raises(UserError, match=r"mixed.jsonl, line 6: a response stands there twice"):
        train_rm(options_for(world, rankings=str(tmp_path / "mixed.jsonl"), strict=True))
    completion = [{"role": "assistant", "content": "zx " * 200}]
    write_jsonl(tmp_path / "demonstrations.jsonl", [{**prompt(1), "completion": completion}])
    with pytest.raises(UserError, match="no demonstration fits the model's context of 192 tokens"):
        train_rm(options_for(world, demonstrations=str(tmp_path / "demonstrations.jsonl")))
    simulated = "rlhf_mini.world.labelers:training_labelers"
    with pytest.raises(UserError, match="the simulated labelers cannot judge 'p-1000': it has no `check`"):
        train_rm(options_for(world, prompts=str(world / "foreign.jsonl"), labelers=simulated))
    with pytest.raises(SystemExit) as stopped:
        parse_options(RMOptions, ["--num_responses", "1"])
    assert stopped.value.code == 2 and "--num_responses must be at least 2, not 1" in capsys.readouterr().err
    assert not list((world / "runs" / "t").glob("*.partial"))
    assert parse_options(RMOptions, ["--config", "stages/rm/nano.yaml"]).num_prompts == 160


# --- likelihood ------------------------------------------------------------------------------------------------------


def test_the_weight_of_likelihood_is_learned_by_the_same_loss(world: Path) -> None:
    folder = world / "runs" / "t" / "sft"
    tokenizer, sft = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    model = with_scalar_head(folder, seed=0).eval()
    rankings = [
        ranking(1, ["it is", "green", "is is is it"], [1, 2, 3], ended=[True, False, True]),
        ranking(2222, ["it", "green green"], [2, 1]),
    ]
    plain = encode(model, tokenizer, rankings)
    examples = list(likelihood.of_examples(sft, plain))
    prompt_ids = encode_prompts(tokenizer, [rankings[1]["prompt"]])[0].ids
    logprobs = sft(torch.tensor([examples[1].input_ids[0]])).logits[0].log_softmax(-1)
    answer = examples[1].input_ids[0][len(prompt_ids) :]
    expected = [logprobs[len(prompt_ids) - 1 + at, token].item() for at, token in enumerate(answer)]
    assert answer[-1] == tokenizer.eos_token_id and len(answer) > 1
    assert examples[1].likelihoods and examples[1].likelihoods[0] == pytest.approx(
        sum(expected) / len(expected), abs=1e-5
    )

    with torch.no_grad():
        scalars = score_responses(model, plain)
        torch.testing.assert_close(score_responses(model, examples), scalars)  # without a coefficient it adds nothing
    likelihood.add_coefficient(model)
    model.likelihood.data.fill_(0.02)
    each = torch.tensor([value for example in examples for value in example.likelihoods or []])
    torch.testing.assert_close(score_responses(model, examples).detach(), scalars + 2 * each)

    for order, sign in (([1, 2, 3], 1), ([3, 2, 1], -1)):  # what is likely is better; what is likely is worse
        made = plain[0]._replace(ranks=order, likelihoods=[-1.0, -2.0, -3.0])
        model.likelihood.data.zero_()
        (slope,) = torch.autograd.grad(objective(model, [made]).loss, model.likelihood)
        assert slope.item() * sign < 0
    model.likelihood.data.fill_(0.02)
    assert likelihood.take_coefficient(model) == pytest.approx(2.0)
    assert model.state_dict().keys() == with_scalar_head(folder, seed=0).state_dict().keys()


def test_the_score_has_a_scalar_and_a_likelihood(world: Path) -> None:
    train_rm(options_for(world, likelihood=True))
    folder = world / "runs" / "t" / "rm"
    weight = stage_json(world, "rm")["metrics"]["likelihood_coef"]
    model, plain = load_reward_model(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.likelihood_coef == weight and abs(weight - 1) > 0.1  # it has moved
    model.config.likelihood_coef = 0.5
    attach_reader(model, AutoModelForCausalLM.from_pretrained(world / "runs" / "t" / "sft"))
    prompts, responses = [[5], [5, 6, 7]], [[6, 7], [8, 9]]
    with torch.no_grad():
        likelihoods = mean_likelihoods(vars(model)["reader"], prompts, responses)
        ours, scalars = reward_scores(model, prompts, responses), reward_scores(plain, prompts, responses)
    torch.testing.assert_close(ours, scalars + 0.5 * likelihoods)
    logits = vars(model)["reader"](torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(likelihoods[1], (logits[2, 8] + logits[3, 9]) / 2)
    assert model.state_dict().keys() == plain.state_dict().keys()  # the reader is no part of its weights

    train_rm(options_for(world))
    assert "likelihood_coef" not in stage_json(world, "rm")["metrics"] and not (folder / "reader").exists()


# --- what is ranked --------------------------------------------------------------------------------------------------


def test_the_most_different_responses_are_kept() -> None:
    texts = ["It is green.", "It is green", "It is very green.", "Who cares about that?"]
    candidates = [Response(one, ended=True) for one in texts]
    assert [one.text for one in most_different(candidates, 2)] == ["It is green.", "Who cares about that?"]
    assert most_different(candidates, 9) and len(most_different(candidates, 9)) == 4
    assert most_different([], 3) == []
    assert distinct([Response("a", True), Response("a", False), Response("a", True)]) == [
        Response("a", True), Response("a", False)
    ]  # fmt: skip


def test_each_response_is_exchanged_once_within_its_kind() -> None:
    examples = [prompt(n, kind="ab"[n % 2]) for n in range(20)]
    responses = [Response(f"{n % 2} {n}", ended=True) for n in range(20)]
    exchanged = exchange(examples, responses, seed=0)
    assert sorted(one.text for one in exchanged) == sorted(one.text for one in responses)
    assert all(one != own and one.text[0] == own.text[0] for one, own in zip(exchanged, responses, strict=True))
    assert exchange([prompt(1)], responses[:1], seed=0) == responses[:1]  # alone: it is then dropped as a duplicate


def test_the_sources_of_the_ranked_responses(world: Path, _nano_base: Path) -> None:
    train_rm(options_for(world, base=str(_nano_base), exchange=True, num_responses=5, num_samples=6))
    rankings = read_rankings(world / "runs" / "t" / "rm" / "rankings.jsonl")
    assert all(len(set(zip(each["responses"], each["ended"], strict=True))) == len(each["ranks"]) for each in rankings)
    assert max(len(each["ranks"]) for each in rankings) == 5
    parents = {parent["stage"] for parent in stage_json(world, "rm")["parents"]}
    assert parents == {"sft", "base"}
    with pytest.raises(UserError, match=r"--num_responses 2 leaves no room .* use at least 3"):
        options_for(world, base="b", exchange=True, num_responses=2)


def test_a_reward_model_starts_from_a_judge(world: Path, _nano_base: Path, tmp_path: Path) -> None:
    base = load_checkpoint(_nano_base, "base")
    tokenizer, judge = AutoTokenizer.from_pretrained(_nano_base), with_scalar_head(_nano_base, seed=7)
    judge.config.pad_token_id = tokenizer.pad_token_id
    shared: Any = dict(stage="judge", model=judge, options=JudgeOptions(), seed=7, metrics={}, started=0.0)
    with writing(tmp_path, "judge") as folder:
        save_checkpoint(folder, tokenizer=tokenizer, parents=[base], **shared)
    train_rm(options_for(world, init=str(tmp_path / "judge"), learning_rate=1e-12))
    model = AutoModelForSequenceClassification.from_pretrained(world / "runs" / "t" / "rm")
    for (name, ours), theirs in zip(model.state_dict().items(), judge.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert {parent["stage"] for parent in stage_json(world, "rm")["parents"]} == {"sft", "judge"}

    tokenizer.add_tokens(["another"])
    with writing(tmp_path, "judge") as folder:
        save_checkpoint(folder, tokenizer=tokenizer, parents=[base], **shared)
    with pytest.raises(UserError, match="has other tokens than the SFT model: use --init sft"):
        train_rm(options_for(world, init=str(tmp_path / "judge")))


def test_the_judge_learns_from_votes(tmp_path: Path) -> None:
    """512 threads leave chance behind; the shipped judge has read 32,000."""
    train_judge(
        load_checkpoint("data/base", "base"), tmp_path, JudgeOptions(threads=512, held_out_threads=128, batch_size=16)
    )
    found = json.loads((tmp_path / "judge" / "stage.json").read_text())
    assert found["metrics"]["accuracy"] > 0.53
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge").config.num_labels == 1


def test_no_thread_is_about_a_held_out_prompt() -> None:
    prompts = [each["prompt"] for each in islice(rankings(seed=3), 500)]
    assert not {core(prompt) for prompt in prompts} & held_out_prompts()
    facts = [fact for fact in load().facts.values() if fact.relation.domain in ("countries", "elements", "instruments")]
    held_out = {fact.entity for fact in facts if fact.part != "seen"}
    said = "\n".join(message["content"] for prompt in prompts for message in prompt)
    assert len(held_out) > 10 and not [entity for entity in held_out if f" {entity}?" in said]


def test_rankings_of_one_prompt_are_one_case_for_the_interval(monkeypatch):
    """Thirty students who rank the same few prompts are not hundreds of independent cases."""
    monkeypatch.setattr(agreement, "score_groups", lambda model, tokenizer, prompts, groups: [[1.0, 0.0]] * len(groups))
    rankings: list[Any] = [
        {"prompt": [{"role": "user", "content": f"Q{n % 2}"}], "responses": ["a", "b"], "ranks": [1 + n % 2, 2 - n % 2]}
        for n in range(40)
    ]
    monkeypatch.setattr(agreement, "encode_prompts", lambda tokenizer, prompts: prompts)
    found = agreement.rankings_evaluation(None, None, rankings)["accuracy/rankings"]
    assert (found["prompts"], found["pairs"], found["share"]) == (2, 40, 0.5)
    assert (found["low"], found["high"]) == (0, 1)
