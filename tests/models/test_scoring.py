"""Scores, values and log-probabilities against one unpadded row at a time, through the models' own forward passes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from rlhf_mini.core.examples import Response
from rlhf_mini.models import scoring
from rlhf_mini.models.scoring import (
    in_buckets,
    lay_out,
    load_reward_model,
    response_logprobs,
    response_values,
    reward_scores,
    score_texts,
    sequence_logprobs,
    text_logprobs,
    text_loss,
    with_scalar_head,
)
from rlhf_mini.models.text import encode_prompts, encode_response

PAD, MEAN = 0, 0.75
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12], [15, 16], [17]]
RESPONSES = [[1], [2, 3, 4, 1], [6, 1], [7, 8, 9, 10, 11], [1]]
SEQUENCES = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]


def config(vocab_size: int = 24) -> GPT2Config:
    torch.manual_seed(0)
    return GPT2Config(
        vocab_size=vocab_size, n_positions=128, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3, pad_token_id=PAD
    )


@pytest.fixture(params=["gpt2", "llama"])
def policy(request: pytest.FixtureRequest) -> PreTrainedModel:
    if request.param == "gpt2":
        return GPT2LMHeadModel(config()).eval()
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, pad_token_id=PAD,
    )  # fmt: skip
    return LlamaForCausalLM(settings).eval()


@pytest.fixture
def reward_model() -> GPT2ForSequenceClassification:
    settings = config()
    settings.num_labels = 1
    settings.reward_mean = MEAN
    return GPT2ForSequenceClassification(settings).eval()


def hidden_states(model: GPT2ForSequenceClassification, sequence: list[int]) -> torch.Tensor:
    """(T, d) of one row alone, without padding."""
    return model.transformer(torch.tensor([sequence])).last_hidden_state[0]


def by_row(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(n,) -> one tensor per response."""
    return x.split([len(response) for response in RESPONSES])


def test_rows_are_laid_end_to_end() -> None:
    ids, rows, response = lay_out([[5, 6], [7]], [[1], [2, 3]], torch.device("cpu"))
    assert ids.tolist() == [5, 6, 1, 7, 2, 3]
    assert rows.position_ids.tolist() == [0, 1, 2, 0, 1, 2]
    assert response.tolist() == [2, 4, 5]


@pytest.mark.parametrize("bucket_size", [1, 2, 16])
@torch.no_grad()
def test_scores_do_not_depend_on_the_batch(
    reward_model: GPT2ForSequenceClassification, bucket_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BUCKET_SIZE", bucket_size)
    scores = reward_scores(reward_model, PROMPTS, RESPONSES)
    alone = torch.stack([reward_model(torch.tensor([s])).logits[0, 0] - MEAN for s in SEQUENCES])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)
    assert scores.std() > 0.1  # they differ, so agreeing means something


@torch.no_grad()
def test_scores_agree_with_transformers_own_pooling(reward_model: GPT2ForSequenceClassification) -> None:
    """A padded batch, read by the model itself, up to the mean."""
    width = max(map(len, SEQUENCES))
    padded = torch.tensor([row + [PAD] * (width - len(row)) for row in SEQUENCES])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in SEQUENCES])
    pooled = reward_model(padded, attention_mask=mask).logits[:, 0] - MEAN
    torch.testing.assert_close(reward_scores(reward_model, PROMPTS, RESPONSES), pooled, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_pad_token_inside_a_text_counts_as_text(reward_model: GPT2ForSequenceClassification) -> None:
    """The length decides where a sequence ends, not the token: a sampled pad does not move the score."""
    expected = reward_model.score(hidden_states(reward_model, [5, PAD, PAD]))[-1, 0] - MEAN
    scores = reward_scores(reward_model, [[5], [1, 2, 3]], [[PAD, PAD], [4, 5]])
    torch.testing.assert_close(scores[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bucket_size", [1, 2, 16])
@torch.no_grad()
def test_values_are_read_before_each_token(reward_model: GPT2ForSequenceClassification, bucket_size: int) -> None:
    values = response_values(reward_model, PROMPTS, RESPONSES, bucket_size)
    for prompt, response, actual in zip(PROMPTS, RESPONSES, by_row(values), strict=True):
        expected = reward_model.score(hidden_states(reward_model, prompt + response))[:, 0] - MEAN
        # The value before the first response token is read at the prompt's last token; the response's last gives none.
        torch.testing.assert_close(actual, expected[len(prompt) - 1 : -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("bucket_size", [1, 2, 16])
def test_logprobs_and_entropy(policy: PreTrainedModel, temperature: float, bucket_size: int) -> None:
    logprobs, entropy = response_logprobs(policy, PROMPTS, RESPONSES, temperature, bucket_size)
    for prompt, response, p, h in zip(PROMPTS, RESPONSES, by_row(logprobs), by_row(entropy), strict=True):
        logits = policy(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / temperature
        distribution = torch.distributions.Categorical(logits=logits)
        torch.testing.assert_close(p, distribution.log_prob(torch.tensor(response)), atol=1e-5, rtol=0)
        torch.testing.assert_close(h, distribution.entropy(), atol=1e-5, rtol=0)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


@torch.no_grad()
def test_the_loss_on_texts_is_the_models_own(policy: PreTrainedModel) -> None:
    """Each token but a text's first, every token of all texts weighing the same."""
    sums, tokens = 0.0, 0
    for text, logprobs in zip(
        SEQUENCES, text_logprobs(policy, SEQUENCES).split([len(t) - 1 for t in SEQUENCES]), strict=True
    ):
        own = policy(torch.tensor([text]), labels=torch.tensor([text])).loss.item()
        assert -logprobs.mean().item() == pytest.approx(own, abs=1e-5)
        sums, tokens = sums + own * (len(text) - 1), tokens + len(text) - 1
    assert text_loss(policy, SEQUENCES).item() == pytest.approx(sums / tokens, abs=1e-5)


def test_buckets_do_not_change_the_gradient(
    policy: PreTrainedModel, reward_model: GPT2ForSequenceClassification
) -> None:
    weights = torch.randn(sum(map(len, RESPONSES)))
    gradients = []
    for bucket_size in (2, 16):
        policy.zero_grad()
        reward_model.zero_grad()
        logprobs = response_logprobs(policy, PROMPTS, RESPONSES, 1.0, bucket_size).logprobs
        values = response_values(reward_model, PROMPTS, RESPONSES, bucket_size)
        ((logprobs + values) * weights).sum().backward()
        gradients.append([p.grad.clone() for m in (policy, reward_model) for p in m.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == len([*policy.parameters(), *reward_model.parameters()])
    for small, large in zip(*gradients, strict=True):
        torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-4)


def test_buckets_restore_the_order() -> None:
    lengths, of_responses = (3, 1, 4, 1, 5, 2), (2, 9, 1, 1, 4, 3)
    seen = []

    def one_pass(prompts: Any, responses: Any) -> list[torch.Tensor]:
        seen.append([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])
        return [torch.tensor([r[0]]) for r in responses]

    rows = in_buckets(one_pass, [[9] * length for length in lengths], [[10 * n] * of_responses[n] for n in range(6)], 4)
    assert [row.item() for row in rows] == [0, 10, 20, 30, 40, 50]
    assert seen == [[10, 9, 5, 5], [5, 2]]  # prompt and response together, the longest first


def test_texts(nano_base: Path) -> None:
    """A response that comes as text is scored like its tokens, with the end of text only if it ended."""
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    settings = config(len(tokenizer))
    settings.pad_token_id = tokenizer.pad_token_id
    policy = GPT2LMHeadModel(settings).eval()
    settings.num_labels = 1
    reward_model = GPT2ForSequenceClassification(settings).eval()  # no reward_mean in its config: 0
    texts = ("Hi", "Name a colour.", "Hi", "Why?", "Hi")
    prompts = encode_prompts(tokenizer, [[{"role": "user", "content": text}] for text in texts])
    responses = [
        Response("green", True),
        Response("The capital of France", False),
        Response("green", False),
        Response("Paris", True, encode_response(tokenizer, "Paris")),
        Response("", True),
    ]
    scores = score_texts(reward_model, tokenizer, prompts, responses)
    sums = sequence_logprobs(policy, tokenizer, prompts, responses, temperature=0.5)
    for prompt, response, got, total in zip(prompts, responses, scores, sums, strict=True):
        ids = encode_response(tokenizer, response.text, response.ended)
        whole = torch.tensor([prompt.ids + ids])
        with torch.no_grad():
            assert got == pytest.approx(reward_model(whole).logits.item(), abs=1e-5)
            logprobs = (policy(whole).logits[0, len(prompt.ids) - 1 : -1] / 0.5).log_softmax(-1)
        assert total == pytest.approx(logprobs.gather(-1, torch.tensor([ids]).T).sum().item(), abs=1e-4)


def test_a_reader_is_loaded_beside_the_reward_model_and_counts(
    reward_model: GPT2ForSequenceClassification, tmp_path: Path
) -> None:
    reader = GPT2LMHeadModel(config()).eval()
    reward_model.save_pretrained(tmp_path)
    scalars = reward_scores(load_reward_model(tmp_path), PROMPTS, RESPONSES)  # without a coefficient, no reader
    reward_model.config.likelihood_coef = 0.5
    reward_model.save_pretrained(tmp_path)
    reader.save_pretrained(tmp_path / "reader")
    loaded = load_reward_model(tmp_path)
    assert not loaded.training and loaded.state_dict().keys() == reward_model.state_dict().keys()
    for prompt, response, score, scalar in zip(
        PROMPTS, RESPONSES, reward_scores(loaded, PROMPTS, RESPONSES), scalars, strict=True
    ):
        logits = reader(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.distributions.Categorical(logits=logits).log_prob(torch.tensor(response))
        torch.testing.assert_close(score, scalar + 0.5 * logprobs.mean(), atol=1e-5, rtol=0)


def test_no_responses_have_no_logprobs(nano_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    assert sequence_logprobs(GPT2LMHeadModel(config(len(tokenizer))), tokenizer, [], []) == []


def test_the_scalar_head_starts_small(nano_base: Path) -> None:
    """A standard deviation of 1 / sqrt(d + 1) and no bias; the seed decides the weights."""
    heads = [with_scalar_head(nano_base, seed).score for seed in range(8)]
    assert all(head.bias is None and head.weight.shape == (1, 32) for head in heads)
    weights = torch.cat([head.weight.detach() for head in heads])
    assert weights.std().item() == pytest.approx(33**-0.5, rel=0.15)  # of 256 numbers: within 4 standard errors
    assert torch.equal(with_scalar_head(nano_base, 3).score.weight, heads[3].weight)
    assert not torch.equal(heads[0].weight, heads[1].weight)
