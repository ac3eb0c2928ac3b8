"""Our maths on the tensors of TRL 1.12.0's PPOTrainer, the last one released, gives TRL's results.

benchmarks/parity.py recorded them from the real trainer (`make parity`); the fixture's metadata says from which lines.
Where TRL's definition is another one, a test shows that the difference is this and nothing else.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedModel

from rlhf_mini.models import scoring
from rlhf_mini.models.rows import Rows
from stages.ppo import losses

FIXTURE = Path(__file__).parents[1] / "fixtures" / "trl_ppo.safetensors"

with safe_open(FIXTURE, "pt") as _file:
    PROVENANCE = json.loads(_file.metadata()["provenance"])
    TENSORS = {name: _file.get_tensor(name) for name in _file.keys()}  # noqa: SIM118, it is no dict

CASES = sorted(PROVENANCE["cases"])


class Recorded:
    """One update of TRL: its options, the tensors of its rollout, and those of one optimizer step."""

    def __init__(self, case: str) -> None:
        self.options = PROVENANCE["cases"][case]
        self.tensors = {name.removeprefix(f"{case}/"): x for name, x in TENSORS.items() if name.startswith(f"{case}/")}
        self.mask = ~self["padding_mask"]  # (B, R), TRL's masks are True on padding
        # (B, R) TRL keeps one position more, because it puts the score one past the last token
        self.mask_p1 = ~self["padding_mask_p1"]
        self.order = self["micro_batch_inds"]  # (B,) the step's shuffled order of the episodes
        self.rows, self.rows_p1 = (Rows(mask.sum(-1)) for mask in (self.mask, self.mask_p1))

    def __getitem__(self, name: str) -> Tensor:
        x = self.tensors[name]
        return x.double() if x.is_floating_point() else x

    def tokens(self, name: str) -> Tensor:
        """(n,): a tensor (B, R) of the rollout without its padding, as ours are."""
        return self[name][self.mask]

    def tokens_p1(self, name: str) -> Tensor:
        """The same with TRL's one position more."""
        return self[name][self.mask_p1]


@pytest.fixture(params=CASES)
def trl(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param)


WHITENED = 1e-7  # TRL divides integer tensors for the unbiased variance, which rounds it to float32


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=tolerance)


def kl_of(trl: Recorded) -> Tensor:
    estimator = losses.kl_k1 if trl.options["kl_estimator"] == "k1" else losses.kl_k3
    return estimator(trl["logprobs"], trl["ref_logprobs"])


def test_the_fixture_holds_what_it_takes(trl: Recorded) -> None:
    assert PROVENANCE["versions"]["trl"] == "1.12.0"
    lengths = trl.mask.sum(-1)
    assert len(set(lengths.tolist())) >= 4 and lengths.max() == trl.mask.shape[1]
    assert 0 < trl["contain_eos_token"].sum() < len(lengths)
    ratio, advantages, mask = trl["ratio"], trl["advantages"][trl.order], trl.mask[trl.order]
    for clipped in (mask & (ratio > 1.2) & (advantages > 0), mask & (ratio < 0.8) & (advantages < 0)):
        assert clipped.any()
    assert 0 < trl["pg_clipfrac"] < 1 and 0 < trl["vf_clipfrac"] < 1


# --- what the models say ---------------------------------------------------------------------------------------------


def model_of(name: str) -> PreTrainedModel:
    config = GPT2Config(**PROVENANCE["models"], num_labels=1)
    model = (GPT2LMHeadModel if name.endswith("policy") else GPT2ForSequenceClassification)(config)
    weights = {key.removeprefix(f"{name}/"): x for key, x in TENSORS.items() if key.startswith(f"{name}/")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected  # the head is the embedding
    return model.double().eval()


def test_models(trl: Recorded) -> None:
    """Log-probabilities, entropy, values and scores: TRL's on padded prompts, ours on prompt and response joined."""
    pad = PROVENANCE["models"]["pad_token_id"]
    prompts = [[token for token in row if token != pad] for row in trl["queries"].tolist()]
    responses = [row[:length] for row, length in zip(trl["responses"].tolist(), trl.mask.sum(-1).tolist(), strict=True)]
    temperature = trl.options["temperature"]  # TRL adds 1e-7 to it; that, and our float32, is why it is 1e-6 below
    for model, name in (("policy", "logprobs"), ("ref_policy", "ref_logprobs")):
        found = scoring.response_logprobs(model_of(model), prompts, responses, temperature)
        close(found.logprobs, trl.tokens(name), 1e-6)
    close(scoring.response_values(model_of("value_model"), prompts, responses), trl.tokens("values"), 1e-6)

    scores = scoring.reward_scores(model_of("reward_model"), prompts, responses)
    penalized = losses.penalize_missing_eos(scores, trl["contain_eos_token"], trl.options["missing_eos_penalty"])
    close(penalized, trl["scores"], 1e-6)


# --- rewards and advantages ------------------------------------------------------------------------------------------


def test_kl(trl: Recorded) -> None:
    # In padding both log-probabilities are TRL's INVALID_LOGPROB = 1, so that their difference is 0 there.
    close(trl["logprobs"][~trl.mask], torch.ones(int((~trl.mask).sum())))
    close(kl_of(trl), trl["kl"])


def padded(trl: Recorded, x: Tensor) -> Tensor:
    """(n,) -> (B, R), 0 on padding."""
    return torch.zeros(trl.mask.shape, dtype=x.dtype).masked_scatter(trl.mask, x)


def our_rewards(trl: Recorded) -> Tensor:
    """(n,): ours on TRL's scores and log-probabilities."""
    return losses.compute_rewards(trl["scores"], kl_of(trl)[trl.mask], trl.rows, trl.options["kl_coef"])


def trl_rewards(trl: Recorded) -> Tensor:
    """TRL's rewards (B, R) before whitening, from ours: the score moved from the last token to one past it, if any.

    TRL puts it where the value of the finished text would stand; to us that value is 0, and the score is the eos's.
    """
    scores, width = trl["scores"], trl.mask.shape[1]
    unscored = losses.compute_rewards(torch.zeros_like(scores), kl_of(trl)[trl.mask], trl.rows, trl.options["kl_coef"])
    last = trl.mask.sum(-1) - 1  # (B,)
    scored = torch.nn.functional.one_hot(last, width) * scores.unsqueeze(1)
    close(padded(trl, our_rewards(trl) - unscored), scored)
    one_past = torch.nn.functional.one_hot((last + 1).clamp(max=width - 1), width) * scores.unsqueeze(1)
    return padded(trl, unscored) + one_past


def test_rewards(trl: Recorded) -> None:
    rewards = trl_rewards(trl)
    if trl.options["whiten_rewards"]:
        whitened = losses.whiten(rewards[trl.mask_p1], shift_mean=False)
        close(whitened, trl.tokens_p1("rewards"), WHITENED)
    else:
        close(rewards, trl["rewards"])


def test_advantages_and_returns(trl: Recorded) -> None:
    """GAE runs one position further in TRL, like the score; whitening is over the response's tokens for both."""
    gamma, gae_lambda = trl.options["gamma"], trl.options["lam"]
    rewards, values = trl.tokens_p1("rewards"), trl.tokens_p1("values")
    advantages, returns = losses.gae(rewards, values, trl.rows_p1, gamma, gae_lambda)
    close(returns, trl.tokens_p1("returns"))
    of_response = trl.mask[trl.mask_p1]  # without the position past the end
    close(losses.whiten(advantages[of_response]), trl.tokens("advantages"), WHITENED)


def test_the_place_of_the_score_is_all_the_difference() -> None:
    """With gamma and lambda 1 a score counts the same a position later: our own rewards then give TRL's advantages."""
    trl = Recorded("undiscounted")
    advantages, returns = losses.gae(our_rewards(trl), trl.tokens("values"), trl.rows, 1.0, 1.0)
    close(returns, trl.tokens("returns"))
    close(losses.whiten(advantages), trl.tokens("advantages"), WHITENED)

    trl = Recorded("plain")  # the same with lambda 0.95
    returns = padded(trl, losses.gae(our_rewards(trl), trl.tokens("values"), trl.rows, 1.0, 0.95).returns)
    cut = trl.mask.all(-1)  # nothing is past the last column, so there TRL's score is on the last token, too
    close(returns[cut], trl["returns"][cut])
    assert not torch.allclose(returns[~cut], (trl["returns"] * trl.mask)[~cut], atol=1e-3)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_policy_loss(trl: Recorded) -> None:
    mask = trl.mask[trl.order]
    logprobs, advantages = (trl[name][trl.order][mask] for name in ("logprobs", "advantages"))
    loss, clip_fraction = losses.policy_loss(trl["new_logprobs"][mask], logprobs, advantages, trl.options["cliprange"])
    close(loss, trl["pg_loss"])
    close(clip_fraction, trl["pg_clipfrac"], 1e-6)  # float32


def test_value_loss(trl: Recorded) -> None:
    def ours(mask: Tensor) -> losses.Clipped:
        values, returns = (trl[name][trl.order][mask] for name in ("values", "returns"))
        return losses.value_loss(trl["vpred"][mask], values, returns, trl.options["cliprange_value"])

    loss, clip_fraction = ours(trl.mask_p1[trl.order])
    close(loss, trl["vf_loss"])
    close(clip_fraction, trl["vf_clipfrac"], 1e-6)  # float32
    # Ours leaves out the position past the last token, which has no action and so no value to learn.
    assert not torch.allclose(ours(trl.mask[trl.order]).loss, trl["vf_loss"], atol=1e-3)


def test_approx_kl(trl: Recorded) -> None:
    """TRL averages over all positions, and those of padding are 0; ours is over the responses' tokens."""
    mask = trl.mask[trl.order]
    ours = losses.approx_kl(trl["new_logprobs"][mask], trl["logprobs"][trl.order][mask])
    close(ours * mask.double().mean(), trl["approxkl"])
