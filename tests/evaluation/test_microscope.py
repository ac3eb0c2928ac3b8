"""The token microscope says of a response what PPO itself computed for it."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Response
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.evaluation.microscope import MEASURES, Microscope, Token
from rlhf_mini.models.text import encode_prompts
from stages.ppo import train
from stages.ppo.models import Batch, Models
from stages.ppo.options import PPOOptions
from stages.ppo.rewards import of_model

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hi", "What is it?", "Name a colour.", "Go on", *"abcd")]


def set_options(run_dir: Path, **changes: Any) -> PPOOptions:
    """Writes PPO's options into its stage.json, as the stage does."""
    options = PPOOptions(episodes=8, num_minibatches=1, max_new_tokens=120, kl_coef=0.3, gae_lambda=0.9, **changes)
    path = run_dir / "ppo" / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"options": asdict(options)}))
    return options


@pytest.fixture
def run_dir(nano_run: CompareOptions) -> Path:
    """A run with a value model that is not the reward model."""
    torch.manual_seed(5)
    value_model = AutoModelForSequenceClassification.from_pretrained(nano_run.run_dir / "rm")
    torch.nn.init.normal_(value_model.score.weight)
    value_model.save_pretrained(nano_run.run_dir / "ppo" / "value_model")
    set_options(nano_run.run_dir)
    return nano_run.run_dir


def rollout(run_dir: Path, options: PPOOptions) -> tuple[Batch, Models]:
    load_lm, load_head = AutoModelForCausalLM.from_pretrained, AutoModelForSequenceClassification.from_pretrained
    tokenizer, rm = AutoTokenizer.from_pretrained(run_dir / "sft"), load_head(run_dir / "rm").eval()
    models = Models(
        load_lm(run_dir / "ppo").eval(), load_head(run_dir / "ppo" / "value_model").eval(),
        load_lm(run_dir / "sft").eval(), of_model(rm, tokenizer), tokenizer,
    )  # fmt: skip
    prompts, generator = encode_prompts(tokenizer, PROMPTS), torch.Generator().manual_seed(0)
    trajectories = train.rollout(models, prompts, options, generator)
    rewards = train.kl_penalized_rewards(trajectories, options, options.kl_coef)
    return train.with_advantages(trajectories, rewards, options), models


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_agrees_with_ppo(run_dir: Path, temperature: float) -> None:
    options = set_options(run_dir, temperature=temperature)
    batch, _ = rollout(run_dir, options)
    assert set(batch.ended.tolist()) == {True, False}  # the penalty for a missing end of text takes part
    microscope = Microscope(run_dir)
    for row, (prompt, response) in enumerate(zip(PROMPTS, batch.responses, strict=True)):
        view = microscope.look(prompt, response)
        assert len(view.tokens) == len(response.ids)
        assert view.score == pytest.approx(batch.scores[row].item(), abs=1e-5)
        for name, expected in (
            ("logprob", batch.logprobs),
            ("ref_logprob", batch.ref_logprobs),
            ("reward", batch.rewards),
            ("value", batch.values),
            ("advantage", batch.returns - batch.values),  # before whitening
        ):
            seen = [getattr(token, name) for token in view.tokens]
            assert seen == pytest.approx(batch.rows.split(expected)[row].tolist(), abs=1e-5), name


def test_the_kl_is_of_whole_distributions(run_dir: Path) -> None:
    microscope = Microscope(run_dir)
    view = microscope.look(PROMPTS[2], Response("Paris", True))
    assert all(token.kl > 0 for token in view.tokens)
    ids = microscope.tokenizer("<|user|> Name a colour.\n<|assistant|>")["input_ids"]
    with torch.no_grad():
        new, old = (m(torch.tensor([ids])).logits[0, -1] / 0.7 for m in (microscope.policy, microscope.ref_policy))
    p, log_ratio = new.softmax(-1), new.log_softmax(-1) - old.log_softmax(-1)
    assert view.tokens[0].kl == pytest.approx((p * log_ratio).sum().item(), abs=1e-5)
    assert view.tokens[0].instead == microscope.tokenizer.decode(old.argmax())
    assert view.tokens[0].instead_logprob == pytest.approx(old.log_softmax(-1).max().item(), abs=1e-5)


def test_a_text_is_encoded_and_ends(run_dir: Path) -> None:
    microscope = Microscope(run_dir)
    tokens = microscope.look(PROMPTS[0], Response("Paris", True)).tokens
    assert "".join(token.text for token in tokens) == " Paris<|endoftext|>"
    assert len(microscope.look(PROMPTS[0], Response("Paris", False)).tokens) == len(tokens) - 1


def test_a_reward_that_is_a_function(run_dir: Path) -> None:
    set_options(run_dir, reward="stages.ppo.rewards:short")
    view = Microscope(run_dir, reward="stages.ppo.rewards:short").look(PROMPTS[0], Response("one two", True))
    assert view.score == pytest.approx(0.9)
    last = view.tokens[-1]
    assert last.reward == pytest.approx(0.9 - 0.3 * last.shift, abs=1e-5)


def test_a_run_does_not_say_what_is_imported(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stage.json may be someone else's. Without the flag, all is shown that takes no score."""
    (tmp_path / "planted.py").write_text("open('executed', 'w')\ndef f(prompts, responses): return [0.5]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    set_options(run_dir, reward="planted:f")
    microscope = Microscope(run_dir)
    view = microscope.look(PROMPTS[0], Response("one two", True))
    assert not (tmp_path / "executed").exists()
    assert "--reward planted:f runs it, if you trust this run." in microscope.note
    *before, last = view.tokens
    assert math.isnan(view.score) and math.isnan(last.reward) and math.isnan(last.advantage)
    assert all(math.isfinite(token.reward) for token in before) and all(math.isfinite(t.kl) for t in view.tokens)
    with pytest.raises(UserError, match=r"--reward planted:g is not what this run's PPO was trained on, planted:f: "):
        Microscope(run_dir, reward="planted:g")
    assert not (tmp_path / "executed").exists()

    allowed = Microscope(run_dir, reward="planted:f")
    assert allowed.note == "" and allowed.look(PROMPTS[0], Response("one two", True)).score == 0.5
    assert (tmp_path / "executed").exists()


def test_options_that_are_not_ppos_are_one_sentence(run_dir: Path) -> None:
    path = run_dir / "ppo" / "stage.json"
    info = json.loads(path.read_text())
    for change in ({"reward": 3}, {"kl_coef": "much"}, {"gamma": None}):
        path.write_text(json.dumps(info | {"options": info["options"] | change}))
        with pytest.raises(UserError, match=r"stage.json lacks PPO's options"):
            Microscope(run_dir)


def test_every_measure_is_a_number_of_a_token() -> None:
    token = Token("a", -1.0, -1.5, 0.1, 0.2, 0.3, 0.4, "b", -0.5)
    assert {name: getattr(token, name) for name in MEASURES} == {
        "shift": 0.5, "kl": 0.1, "reward": 0.2, "value": 0.3, "advantage": 0.4
    }  # fmt: skip
    assert math.isclose(token.shift, 0.5)


def test_without_ppo_it_says_what_to_run(nano_run: CompareOptions) -> None:
    (nano_run.run_dir / "ppo").rename(nano_run.run_dir / "elsewhere")
    with pytest.raises(UserError, match=r"there is no ppo checkpoint in .*: run `python -m stages.ppo"):
        Microscope(nano_run.run_dir)
