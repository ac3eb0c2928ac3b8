"""PPO as a whole, on models small enough to run in seconds."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import ppo_batch
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core import checkpoints
from rlhf_mini.core.checkpoints import load_checkpoint, save_checkpoint
from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Messages, Response
from rlhf_mini.core.files import sha256, write_jsonl
from rlhf_mini.core.options import parse_options
from rlhf_mini.models import scoring
from rlhf_mini.models.text import EncodedPrompt, encode_prompts
from stages.ppo import losses, metrics, rewards, train
from stages.ppo import run as ppo_run
from stages.ppo.models import Batch, Models, load_models
from stages.ppo.options import PPOOptions
from stages.ppo.run import Learner

ROOT = Path(__file__).parents[2]
REWARD_MEAN = 0.25


def prompt(text: str) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": text}]}


PROMPTS = [prompt("Name a colour" + " please" * (index % 5) + "?") for index in range(24)]


def make_rm(sft: Path, folder: Path) -> None:
    """A reward model that was not trained: a random head whose scores differ by about 1."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(sft, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.2)
    model.config.reward_mean = REWARD_MEAN
    save(folder, "rm", model, sft, [load_checkpoint(sft, "sft")])


def save(folder: Path, stage: str, model: Any, tokenizer: Path, parents: list[checkpoints.Checkpoint]) -> None:
    with checkpoints.writing(folder, stage) as partial:
        save_checkpoint(
            partial,
            stage=stage,
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(tokenizer),
            options=PPOOptions(),
            seed=0,
            metrics={},
            started=time.time(),
            parents=parents,
        )


@pytest.fixture
def runs(nano_base: Path, tmp_path: Path) -> Path:
    """runs/nano with an sft and an rm checkpoint, and prompts beside it."""
    runs = tmp_path / "runs"
    save(runs / "nano", "sft", AutoModelForCausalLM.from_pretrained(nano_base), nano_base, [])
    make_rm(runs / "nano" / "sft", runs / "nano")
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    write_jsonl(
        tmp_path / "texts.jsonl", [{"text": "Question: what colour is a kiwi? " * (n % 4 + 1)} for n in range(40)]
    )
    return runs


def options_for(runs: Path, **changes: Any) -> PPOOptions:
    prompts, texts = (str(runs.parent / name) for name in ("prompts.jsonl", "texts.jsonl"))
    settings: dict[str, Any] = dict(
        run="nano", runs_dir=str(runs), prompts=prompts, validation_prompts=prompts, ptx_texts=texts, updates=2,
        episodes=8,        num_minibatches=2, max_new_tokens=8, warmup_updates=1, evaluation_prompts=8,
        sample_every=1, temperature=1.0, ptx_coef=0.0, value_learning_rate=2e-4,
    )  # fmt: skip
    return PPOOptions(**settings | changes)


def loaded(runs: Path) -> Models:
    sft = load_checkpoint(runs / "nano" / "sft", "sft")
    return load_models(sft, load_checkpoint(runs / "nano" / "rm", "rm", of=sft), options_for(runs))


def messages(count: int) -> list[Messages]:
    return [example["prompt"] for example in PROMPTS[:count]]


def collect(models: Models, prompts: list[Messages], options: PPOOptions) -> Batch:
    return ppo_batch.collect(models, prompts, options, seeded())


def new_pass(models: Models, batch: Batch, temperature: float, bucket_size: int = 16) -> tuple[Any, Any]:
    """Log-probabilities and values as the update computes them."""
    ids = batch.prompt_ids, batch.response_ids
    logprobs = scoring.response_logprobs(models.policy, *ids, temperature, bucket_size).logprobs
    return logprobs, scoring.response_values(models.value_model, *ids, bucket_size)


def no_texts() -> Iterator[Any]:
    raise AssertionError("plain PPO reads no texts")
    yield


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sharpen(models: Models, factor: float = 4.0) -> None:
    """Makes the random policy decided, and the reference and itself differ."""
    with torch.no_grad():
        models.policy.transformer.wte.weight *= factor


# --- the rollout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_trajectories_agree_with_the_models_own_passes(runs: Path, temperature: float) -> None:
    """Every tensor of a rollout, computed a second time, one row after the other."""
    models = loaded(runs)
    sharpen(models)
    options = options_for(
        runs, temperature=temperature, kl_coef=0.3, missing_eos_penalty=0.7, max_new_tokens=6, gamma=0.9
    )
    batch = collect(models, messages(8), options)
    eos = models.tokenizer.eos_token_id
    reward_model = AutoModelForSequenceClassification.from_pretrained(runs / "nano" / "rm").eval()
    by_row = {
        name: batch.rows.split(getattr(batch, name)) for name in ("logprobs", "ref_logprobs", "values", "rewards")
    }
    for row, prompt in enumerate(encode_prompts(models.tokenizer, messages(8))):
        ids, response = batch.prompts[row].ids, torch.tensor(batch.responses[row].ids)
        assert ids == prompt.ids
        whole = torch.tensor([*ids, *response])
        with torch.no_grad():
            logprobs, ref_logprobs = (
                (model(whole[None]).logits[0, len(ids) - 1 : -1] / temperature)
                .log_softmax(-1)
                .gather(-1, response[:, None])[:, 0]
                for model in (models.policy, models.ref_policy)
            )
            score = reward_model(whole[None]).logits[0, 0] - REWARD_MEAN
            hidden = models.value_model.transformer(whole[None]).last_hidden_state[0]
            values = models.value_model.score(hidden)[len(ids) - 1 : -1, 0] - REWARD_MEAN
        rewards = -0.3 * (logprobs - ref_logprobs)
        rewards[-1] += score - (0.0 if response[-1] == eos else 0.7)
        assert bool(batch.ended[row]) == bool(response[-1] == eos)
        for name, expected in (
            ("logprobs", logprobs),
            ("ref_logprobs", ref_logprobs),
            ("values", values),
            ("rewards", rewards),
        ):
            torch.testing.assert_close(by_row[name][row], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batch.scores[row], score, atol=1e-5, rtol=0)

    advantages, returns = losses.gae(batch.rewards, batch.values, batch.rows, options.gamma, options.gae_lambda)
    torch.testing.assert_close(batch.returns, returns)  # taken before the whitening
    torch.testing.assert_close(batch.advantages, losses.whiten(advantages))
    assert (batch.logprobs - batch.ref_logprobs).abs().max() > 0.1  # the sharpened policy does differ
    torch.testing.assert_close(batch.advantages.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(batch.advantages.std(), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_nothing_is_padded_between_rollout_and_update(runs: Path) -> None:
    """Every tensor has one entry per response token, in the batch and in each minibatch."""
    models = loaded(runs)
    sharpen(models)
    with torch.no_grad():
        models.policy.transformer.wte.weight[models.tokenizer.eos_token_id] *= (
            0  # a logit of 0: it is drawn now and then
        )
    batch = collect(models, messages(8), options_for(runs, max_new_tokens=40))
    lengths = [len(ids) for ids in batch.response_ids]
    assert len(set(lengths)) > 1
    for part, rows in ((batch, list(range(8))), (batch.minibatch([5, 0, 3]), [5, 0, 3])):
        assert part.response_ids == [batch.response_ids[row] for row in rows]
        assert part.rows.lengths.tolist() == [lengths[row] for row in rows]
        assert part.scores.tolist() == [batch.scores[row].item() for row in rows]
        for name in ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns"):
            whole = batch.rows.split(getattr(batch, name))
            assert torch.equal(getattr(part, name), torch.cat([whole[row] for row in rows])), name


def test_the_ratio_in_the_first_minibatch_is_1(runs: Path) -> None:
    """Log-probabilities kept from the rollout (cached, rows leaving) equal the update's (whole rows, in buckets)."""
    models = loaded(runs)
    sharpen(models)
    options = options_for(runs, episodes=16, max_new_tokens=12, bucket_size=3, temperature=0.8)
    batch = collect(models, messages(16), options)
    new_logprobs, new_values = new_pass(models, batch, options.temperature, options.bucket_size)
    ratio = torch.exp(new_logprobs - batch.logprobs)
    assert (ratio - 1).abs().max() < 1e-4
    torch.testing.assert_close(new_values, batch.values, atol=1e-5, rtol=0)
    # The check can fail: another temperature, or dropout, and the ratio is far from 1.
    other, _ = new_pass(models, batch, 1.0)
    assert (torch.exp(other - batch.logprobs) - 1).abs().max() > 1e-2


def test_reward_whitening_keeps_the_mean(runs: Path) -> None:
    models = loaded(runs)
    plain, whitened = (collect(models, messages(8), options_for(runs, whiten_rewards=on)) for on in (False, True))
    torch.testing.assert_close(whitened.rewards.mean(), plain.rewards.mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(whitened.rewards.std(), torch.tensor(1.0), atol=1e-4, rtol=0)


# --- learning --------------------------------------------------------------------------------------------------------


def even_tokens(prompts: Sequence[EncodedPrompt], responses: Sequence[Response]) -> list[float]:
    """A reward: half the number of even tokens in a response of eight."""
    return [sum(token % 2 == 0 for token in response.ids) / 2 for response in responses]


def practise(models: Models, options: PPOOptions, updates: int) -> list[dict[str, float]]:
    """PPO without the stage around it: the metrics of each rollout."""
    learner = Learner(models, options)
    learner.set_rates(1.0, 1.0)
    generator, history = seeded(), []
    prompts = messages(8) * (options.episodes // 8)
    for _ in range(updates):
        batch = ppo_batch.collect(models, prompts, options, generator)
        history.append(metrics.rollout_metrics(batch, options, options.kl_coef))
        train.ppo_epochs(models, learner.optimizers, batch, options, generator, no_texts())
    return history


def gradient_descent(models: Models, rate: float) -> list[torch.optim.Optimizer]:
    """Plain, so that a step is the gradient."""
    return [torch.optim.SGD(model.parameters(), lr=rate) for model in (models.policy, models.value_model)]


def test_ppo_finds_a_simple_reward_and_the_kl_holds_it_back(runs: Path) -> None:
    last = {}
    for kl_coef in (0.02, 5.0):
        models = loaded(runs)
        models.reward = even_tokens
        options = options_for(
            runs, episodes=32, learning_rate=1e-2, value_learning_rate=1e-2, kl_coef=kl_coef, missing_eos_penalty=0.0
        )
        history = practise(models, options, updates=15)
        assert history[0]["objective/scores"] < 2.5  # half of the tokens are even
        assert history[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
        last[kl_coef] = history[-1]
    assert last[0.02]["objective/scores"] > 3.5
    assert last[0.02]["objective/kl"] > 2
    assert last[0.02]["objective/kl_k3"] > 2
    assert last[5.0]["objective/kl"] < 1


def test_one_step_raises_what_was_good(runs: Path) -> None:
    """The sign of the update: tokens with a positive advantage become likelier, the others less likely."""
    models = loaded(runs)
    options = options_for(runs, num_minibatches=1, learning_rate=1e-3)
    batch = collect(models, messages(8), options)
    train.ppo_epochs(models, gradient_descent(models, 0.01), batch, options, seeded(), no_texts())
    new_logprobs, new_values = new_pass(models, batch, 1.0)
    gain = ((new_logprobs - batch.logprobs) * batch.advantages).mean()
    assert gain > 1e-4
    before, after = ((values - batch.returns).square().mean() for values in (batch.values, new_values))
    assert after < before


def test_policy_and_value_model_do_not_share_gradients(runs: Path) -> None:
    models = loaded(runs)
    options = options_for(runs)
    batch = collect(models, messages(8), options)
    logprobs, values = new_pass(models, batch, 1.0)
    logprobs.sum().backward()
    assert all(p.grad is None for p in models.value_model.parameters())
    assert all(p.grad is not None for p in models.policy.parameters())
    models.policy.zero_grad()
    values.sum().backward()
    assert all(p.grad is None for p in models.policy.parameters())
    assert all(p.grad is not None for p in models.value_model.parameters())


def test_minibatches_are_drawn_anew_and_cover_every_episode(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, options = loaded(runs), options_for(runs, num_ppo_epochs=2, num_minibatches=4)
    batch = collect(models, messages(8), options)
    seen: list[list[int]] = []
    original = Batch.minibatch

    def select(self: Batch, rows: list[int]) -> Batch:
        seen.append(rows)
        return original(self, rows)

    monkeypatch.setattr(Batch, "minibatch", select)
    logged = train.ppo_epochs(models, gradient_descent(models, 0.0), batch, options, seeded(), no_texts())
    assert [len(rows) for rows in seen] == [2] * 8
    epochs = [sum(seen[:4], []), sum(seen[4:], [])]  # noqa: RUF017
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8))
    assert epochs[0] != epochs[1]
    assert logged["policy/first_ratio_error"] < 1e-4


# --- the stage -------------------------------------------------------------------------------------------------------


def test_the_stage_writes_a_checkpoint_that_transformers_loads(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "nano" / "ppo"
    train.train_ppo(options_for(runs))
    sft, ppo = (AutoModelForCausalLM.from_pretrained(runs / "nano" / stage) for stage in ("sft", "ppo"))
    assert not torch.equal(sft.transformer.wte.weight, ppo.transformer.wte.weight)  # it learned
    value_model = AutoModelForSequenceClassification.from_pretrained(folder / "value_model")
    assert value_model.config.num_labels == 1
    assert value_model.config.reward_mean == REWARD_MEAN
    assert AutoTokenizer.from_pretrained(folder).chat_template

    parent = load_checkpoint(folder, "ppo")
    assert [p["stage"] for p in parent.info["parents"]] == ["sft", "rm"]
    assert {"validation/ppo_score", "validation/sft_score", "validation/kl", "validation/ppo_eos_rate"} <= set(
        parent.info["metrics"]
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    for name in (
        "objective/kl", "objective/scores", "objective/rlhf_reward", "policy/entropy", "policy/approx_kl",
        "policy/clip_fraction", "policy/ratio_mean", "policy/ratio_variance", "response/eos_rate", "response/length",
        "value/explained_variance", "learning_rate", "episodes_per_second", "loss/policy", "loss/value",
    ):  # fmt: skip
        assert all(isinstance(line[name], float) for line in lines), name
    assert all(line["policy/first_ratio_error"] < 1e-4 for line in lines)
    assert lines[0]["objective/kl"] == pytest.approx(0, abs=1e-4)  # the first rollout is the SFT model's own
    assert "update 2/2" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_policy(runs: Path) -> None:
    weights = []
    for seed in (0, 0, 1):
        train.train_ppo(options_for(runs, seed=seed))
        weights.append(sha256(runs / "nano" / "ppo" / "model.safetensors"))
    assert weights[0] == weights[1] != weights[2]


def test_the_learning_rate_warms_up_and_falls_to_a_tenth(runs: Path) -> None:
    train.train_ppo(options_for(runs, updates=5, warmup_updates=2, learning_rate=1e-3, evaluation_prompts=1))
    lines = (runs / "nano" / "ppo" / "metrics.jsonl").read_text().splitlines()
    # Half of the peak, then 0.1 + 0.9 * (1 + cos(pi * k / 4)) / 2 of it for k = 1, 2, 3, 4.
    expected = [5e-4, 0.868198e-3, 0.55e-3, 0.231802e-3, 1e-4]
    assert [json.loads(line)["learning_rate"] for line in lines] == pytest.approx(expected, rel=1e-4)
    of_value = [json.loads(line)["value_learning_rate"] for line in lines]  # without warmup
    assert of_value[0] == options_for(runs).value_learning_rate and of_value == sorted(of_value, reverse=True)


@pytest.mark.parametrize("rates", [(1e-3, 1e-7), (1e-7, 1e-3)], ids=["policy", "value model"])
def test_policy_and_value_model_learn_at_rates_of_their_own(runs: Path, rates: tuple[float, float]) -> None:
    """In its first step, Adam moves a weight by the learning rate, whatever the gradient."""
    options = options_for(runs, learning_rate=rates[0], value_learning_rate=rates[1], updates=1, num_minibatches=1)
    train.train_ppo(replace(options, warmup_updates=0))
    nano = runs / "nano"
    before, after = (AutoModelForCausalLM.from_pretrained(nano / stage) for stage in ("sft", "ppo"))
    moves = [(after.transformer.h[0].mlp.c_fc.weight - before.transformer.h[0].mlp.c_fc.weight).abs().max().item()]
    scorers = (AutoModelForSequenceClassification.from_pretrained(nano / stage) for stage in ("rm", "ppo/value_model"))
    first, last = (scorer.transformer.h[0].mlp.c_fc.weight for scorer in scorers)
    moves.append((last - first).abs().max().item())
    assert moves == pytest.approx(list(rates), rel=0.1)


def test_snapshots_are_the_policies_on_the_way(runs: Path) -> None:
    train.train_ppo(options_for(runs, updates=4, snapshot_steps=2, save_steps=0))
    folder = runs / "nano" / "ppo"
    assert sorted(path.name for path in (folder / "snapshots").iterdir()) == ["0002", "0004"]
    half, end, final = (
        AutoModelForCausalLM.from_pretrained(path).transformer.wte.weight
        for path in (folder / "snapshots" / "0002", folder / "snapshots" / "0004", folder)
    )
    assert torch.equal(end, final) and not torch.equal(half, final)
    with pytest.raises(UserError, match="--snapshot_steps needs --save_steps 0"):
        options_for(runs, snapshot_steps=2, save_steps=1)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def counting(prompts: list[Messages], responses: list[str]) -> list[float]:
    """A reward that knows which response it is given."""
    assert len(prompts) == len(responses)
    return [float(len(response)) for response in responses]


def broken(prompts: list[Messages], responses: list[str]) -> list[float]:
    return [1.0]


def infinite(prompts: list[Messages], responses: list[str]) -> list[float]:
    return [float("inf")] * len(responses)


def test_a_function_as_the_reward_needs_no_reward_model(runs: Path) -> None:
    shutil.rmtree(runs / "nano" / "rm")
    train.train_ppo(options_for(runs, reward="test_ppo_train:counting"))
    parent = load_checkpoint(runs / "nano" / "ppo", "ppo")
    assert [p["stage"] for p in parent.info["parents"]] == ["sft"]
    sft = load_checkpoint(runs / "nano" / "sft", "sft")
    models = load_models(sft, None, options_for(runs, reward="test_ppo_train:counting"))
    responses = [Response("four", True), Response("", False)]
    prompts = encode_prompts(models.tokenizer, messages(2))
    assert models.reward(prompts, responses) == [4.0, 0.0]
    for name, says in [
        ("broken", "returned 1 numbers for 2"),
        ("infinite", "not finite"),
        ("nobody", "has no function"),
    ]:
        with pytest.raises(UserError, match=says):
            load_models(sft, None, options_for(runs, reward=f"test_ppo_train:{name}")).reward(prompts, responses)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (lambda: None, "must return a list of 2 numbers, one for each response, not None"),
        (lambda: 1.0, "one for each response, not 1.0"),
        (lambda: "12", "one for each response, not '12'"),
        (lambda: ["1", "2"], r"one for each response, not \['1', '2'\]"),
        (lambda: [[1.0], [2.0]], r"not \[\[1.0\], \[2.0\]\]"),
        (lambda: [None, 1.0], r"not \[None, 1.0\]"),
        (lambda: {0: 1.0, 1: 2.0}, "one for each response, not {0: 1.0, 1: 2.0}"),
        (lambda: torch.zeros(2, 2), r"not a Tensor of shape \(2, 2\)"),
        (lambda: torch.zeros(2, 1), r"not a Tensor of shape \(2, 1\)"),
        (lambda: np.zeros(()), r"not a ndarray of shape \(\)"),
        (lambda: list(torch.zeros(2, 2)), "one for each response, not "),
        (lambda: torch.zeros(3), "returned 3 numbers for 2 responses"),
        (lambda: [10**400, 1], "not finite"),
        (lambda: 1 / 0, r"failed with a ZeroDivisionError in line \d+ of .*\.py \(division by zero\); correct it"),
    ],
)
def test_a_reward_that_returns_no_numbers_is_one_sentence(returned: Callable[[], Any], says: str) -> None:
    reward = rewards.of_function(lambda prompts, responses: returned(), "mine:f")
    with pytest.raises(UserError, match=f"^--reward mine:f .*{says}"):
        reward([EncodedPrompt([], [])] * 2, [Response("a", True), Response("b", False)])


def test_a_reward_may_return_any_row_of_numbers() -> None:
    rows: list[Any] = [[1, 0.5], (1, 0.5), np.array([1, 0.5]), torch.tensor([1, 0.5]), [True, np.float32(0.5)]]
    given = iter(rows)
    reward = rewards.of_function(lambda prompts, responses: next(given), "mine:f")
    for _ in rows:
        assert reward([EncodedPrompt([], [])] * 2, [Response("a", True), Response("b", False)]) == [1.0, 0.5]


def test_the_examples_of_rewards() -> None:
    texts = ["", "one two three four five", "I am happy."]
    assert rewards.short(messages(3), texts) == [1.0, 0.75, 0.85]
    assert rewards.please(messages(3), texts) == [0.0, 0.0, 1.0]


def test_a_named_reward_model_may_be_of_another_sft_model(
    runs: Path, nano_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = AutoModelForCausalLM.from_pretrained(nano_base)
    with torch.no_grad():
        other.transformer.wte.weight += 0.01
    save(runs / "other", "sft", other, nano_base, [])
    with pytest.raises(UserError, match="no rm checkpoint"):
        train.train_ppo(options_for(runs, run="other"))
    train.train_ppo(options_for(runs, run="other", reward=str(runs / "nano" / "rm")))
    assert "was trained on the responses of another SFT model" in " ".join(capsys.readouterr().out.split())


def test_the_controller_moves_the_kl_coefficient(runs: Path) -> None:
    """From update to update by the rule, fed with the KL of whole responses; without a target it stays."""
    settings = dict(updates=6, kl_coef=0.1, kl_horizon=16, learning_rate=1e-2)
    train.train_ppo(options_for(runs, **settings))
    assert {line["objective/kl_coef"] for line in read_metrics(runs / "nano" / "ppo")} == {0.1}
    train.train_ppo(options_for(runs, **settings, kl_target=0.05))
    lines = read_metrics(runs / "nano" / "ppo")
    for before, after in pairwise(lines):
        error = max(-0.2, min(0.2, before["objective/kl"] / 0.05 - 1))
        assert after["objective/kl_coef"] == pytest.approx(before["objective/kl_coef"] * (1 + error * 8 / 16))
    assert lines[1]["objective/kl_coef"] == pytest.approx(0.09)  # the first KL is 0
    assert lines[-1]["objective/kl_coef"] > lines[1]["objective/kl_coef"]  # later ones are above the target


def test_the_average_of_the_policies_is_what_is_saved(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[torch.Tensor] = []
    learners: list[Learner] = []
    original = metrics.show

    def show(*args: Any) -> None:
        weights.append(learners[0].models["policy"].transformer.wte.weight.detach().clone())
        original(*args)

    def new_learner(*args: Any) -> Learner:
        learners.append(Learner(*args))
        return learners[0]

    monkeypatch.setattr(metrics, "show", show)
    monkeypatch.setattr(ppo_run, "Learner", new_learner)
    train.train_ppo(options_for(runs, updates=3, ema_decay=0.75, learning_rate=1e-2))
    kept = AutoModelForCausalLM.from_pretrained(runs / "nano" / "ppo").transformer.wte.weight
    expected = 0.75 * (0.75 * weights[0] + 0.25 * weights[1]) + 0.25 * weights[2]
    torch.testing.assert_close(kept, expected)
    assert not torch.allclose(kept, weights[2])


def test_ptx_moves_the_policy_only_and_towards_the_texts(runs: Path) -> None:
    texts = [[0, 40, 41, 42, 40, 41, 42, 0], [0, 50, 51, 0]]

    def after(ptx_coef: float) -> Models:
        models, options = loaded(runs), options_for(runs, num_minibatches=1, ptx_coef=ptx_coef)
        batch = collect(models, messages(8), options)
        logged = train.ppo_epochs(models, gradient_descent(models, 0.1), batch, options, seeded(), repeat(texts))
        assert ("loss/ptx" in logged) == (ptx_coef > 0)
        return models

    plain, mixed = after(0.0), after(2.0)
    with torch.no_grad():
        assert scoring.text_loss(mixed.policy, texts) < scoring.text_loss(plain.policy, texts) - 0.05
    for one, other in zip(plain.value_model.parameters(), mixed.value_model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("epochs", [1, 3])
def test_more_inner_epochs_take_more_steps(runs: Path, monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Each pass takes every episode once, a minibatch a step; from the second step on, the policy has moved."""
    models, options = loaded(runs), options_for(runs, num_ppo_epochs=epochs, learning_rate=1e-3, ptx_coef=0.1)
    learner, batch = Learner(models, options), collect(models, messages(8), options)
    learner.set_rates(1.0, 1.0)
    ratios: list[Tensor] = []
    visits: list[list[int]] = []
    steps, texts = [0, 0], iter(range(100))
    original, select = losses.policy_loss, Batch.minibatch

    def policy_loss(new_logprobs: Tensor, logprobs: Tensor, *rest: Any) -> losses.Clipped:
        ratios.append(torch.exp(new_logprobs - logprobs).detach())
        return original(new_logprobs, logprobs, *rest)

    def minibatch(self: Batch, rows: list[int]) -> Batch:
        visits.append(rows)
        return select(self, rows)

    def count(index: int) -> None:
        steps[index] += 1

    monkeypatch.setattr(losses, "policy_loss", policy_loss)
    monkeypatch.setattr(Batch, "minibatch", minibatch)
    for index, optimizer in enumerate(learner.optimizers):
        optimizer.register_step_post_hook(lambda *_, index=index: count(index))
    train.ppo_epochs(models, learner.optimizers, batch, options, seeded(), ([[0, 40 + n % 9]] for n in texts))

    assert steps == [2 * epochs] * 2 and next(texts) == 2 * epochs == options.steps
    assert all(sorted(visits[at] + visits[at + 1]) == list(range(8)) for at in range(0, 2 * epochs, 2))
    errors = [(ratio - 1).abs().max().item() for ratio in ratios]
    assert errors[0] < 1e-4 and min(errors[1:]) > 1e-2
    # The ratio is to the rollout, not to the step before: over the passes it goes further.
    assert epochs == 1 or max(errors[4:]) > 2 * max(errors[:2])


@pytest.mark.parametrize(
    ("bound", "says", "advice"),
    [({"max_kl": 0.01}, "KL", "--kl_coef"), ({"min_entropy": 50.0}, "entropy", "--updates")],
)
def test_a_lost_policy_stops_or_warns_and_the_last_good_one_is_kept(
    runs: Path, capsys: pytest.CaptureFixture[str], bound: dict[str, float], says: str, advice: str
) -> None:
    settings: dict[str, Any] = dict(updates=5, learning_rate=1e-2, **bound)
    with pytest.raises(UserError, match=rf"the {says}.*in update \d: .*{advice}.*ppo.last_good"):
        train.train_ppo(options_for(runs, **settings))
    assert sorted(path.name for path in (runs / "nano").iterdir()) == ["ppo.last_good", "rm", "sft"]
    shutil.rmtree(runs / "nano" / "ppo.last_good")
    train.train_ppo(options_for(runs, **settings, on_collapse="warn"))
    assert " ".join(capsys.readouterr().out.split()).count(f"ppo: warning: the {says}") == 1
    assert {"ppo", "ppo.last_good"} < {path.name for path in (runs / "nano").iterdir()}
    kept, last = (
        AutoModelForCausalLM.from_pretrained(runs / "nano" / name).transformer.wte.weight
        for name in ("ppo.last_good", "ppo")
    )
    assert not torch.equal(kept, last)
    sft = AutoModelForCausalLM.from_pretrained(runs / "nano" / "sft").transformer.wte.weight
    assert torch.equal(kept, sft)  # the KL of the first update is 0, so the second is the first to be over the bound


def test_the_optimizer_is_the_papers(runs: Path) -> None:
    models = loaded(runs)
    optimizers = Learner(models, options_for(runs)).optimizers
    for optimizer, model in zip(optimizers, (models.policy, models.value_model), strict=True):
        assert isinstance(optimizer, torch.optim.Adam)
        (group,) = optimizer.param_groups
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-5, 0)
        assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_nan_stops_before_the_weights_are_touched(runs: Path) -> None:
    with pytest.raises(UserError, match=r"not (a )?finite number.* in update \d+: try a lower --learning_rate"):
        train.train_ppo(options_for(runs, learning_rate=1e30, updates=8))
    assert sorted(path.name for path in (runs / "nano").iterdir()) == ["ppo.last_good", "rm", "sft"]
    kept = AutoModelForCausalLM.from_pretrained(runs / "nano" / "ppo.last_good")
    assert all(torch.isfinite(p).all() for p in kept.parameters())
    info = json.loads((runs / "nano" / "ppo.last_good" / "stage.json").read_text())
    assert "not" in info["stopped"]


def test_ctrl_c_leaves_the_earlier_checkpoint(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train.train_ppo(options_for(runs))
    before = sha256(runs / "nano" / "ppo" / "stage.json")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics, "show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.train_ppo(options_for(runs, seed=5))
    assert sorted(path.name for path in (runs / "nano").iterdir()) == ["ppo", "rm", "sft"]
    assert sha256(runs / "nano" / "ppo" / "stage.json") == before


def test_a_reward_model_of_another_sft_model_is_refused(runs: Path, nano_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(nano_base)
    with torch.no_grad():
        model.transformer.wte.weight += 0.01
    save(runs / "nano", "sft", model, nano_base, [])
    with pytest.raises(UserError, match="was not made from the sft"):
        train.train_ppo(options_for(runs))


def test_a_prompt_that_does_not_fit_is_refused_before_any_work(runs: Path) -> None:
    write_jsonl(runs.parent / "long.jsonl", [prompt("1" * 400)])
    with pytest.raises(UserError, match="no prompt leaves room for a response"):
        train.train_ppo(options_for(runs, validation_prompts=str(runs.parent / "long.jsonl")))
    assert not (runs / "nano" / "ppo").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--episodes", "10", "--num_minibatches", "4"], "--episodes (10) must be a multiple of --num_minibatches (4)"),
        (["--episodes", "4", "--num_minibatches", "1"], "--episodes must be at least 8, not 4"),
        (["--learning_rate", "0"], "--learning_rate must be greater than 0, not 0"),
        (["--kl_coef", "-0.1"], "--kl_coef must be at least 0, not -0.1"),
        (["--gamma", "1.1"], "--gamma must be at most 1, not 1.1"),
        (["--device", "gpu"], "--device must be 'cpu' or 'auto', not 'gpu'"),
        (["--temperature", "nan"], "--temperature must be a finite number, not nan"),
        (["--snapshot_steps", "2"], "--snapshot_steps needs --save_steps 0"),
        (["--ptx_texts="], "--ptx_coef needs --ptx_texts: give texts, or --ptx_coef 0"),
        (
            ["--kl_target", "6", "--kl_horizon", "25", "--episodes", "128"],
            "--kl_horizon (25) must be more than a fifth of --episodes (128)",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options(PPOOptions, argv)
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_the_command_as_a_user_runs_it(runs: Path) -> None:
    command = [sys.executable, "-m", "stages.ppo", "--config", str(ROOT / "stages/ppo/nano.yaml")]
    prompts = str(runs.parent / "prompts.jsonl")
    command += ["--runs_dir", str(runs), "--prompts", prompts, "--validation_prompts", prompts, "--updates", "2"]
    command += ["--ptx_texts", str(runs.parent / "texts.jsonl")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "ppo: update 2/2" in result.stdout
    assert "validation prompts score" in result.stdout
    assert load_checkpoint(runs / "nano" / "ppo", "ppo").info["options"]["updates"] == 2
