"""Scores, values and log-probabilities against one unpadded row at a time, through the models' own forward passes."""

from pathlib import Path

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
from rlhf_mini.models.sampling import encode_prompts, encode_response
from rlhf_mini.models.scoring import (
    in_length_buckets,
    response_logprobs,
    response_values,
    right_pad,
    score,
    score_texts,
    sequence_logprobs,
    token_values,
)

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


@pytest.mark.parametrize("bucket_size", [1, 2, 16])
@torch.no_grad()
def test_scores_with_and_without_padding_agree(reward_model: GPT2ForSequenceClassification, bucket_size: int) -> None:
    input_ids, mask = right_pad(SEQUENCES, PAD)
    scores = score(reward_model, input_ids, mask, bucket_size)
    alone = torch.stack([reward_model(torch.tensor([s])).logits[0, 0] - MEAN for s in SEQUENCES])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)
    assert scores.std() > 0.1  # they differ, so agreeing means something
    # transformers' own pooling reads the same position, up to the mean
    pooled = reward_model(input_ids, attention_mask=mask).logits[:, 0] - MEAN
    torch.testing.assert_close(scores, pooled, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_pad_token_inside_a_text_counts_as_text(reward_model: GPT2ForSequenceClassification) -> None:
    """The mask decides where a sequence ends, not the token: a sampled pad does not move the score."""
    sequence = [5, PAD, PAD]
    input_ids, mask = right_pad([sequence, [1, 2, 3, 4, 5]], PAD)
    expected = reward_model.score(hidden_states(reward_model, sequence))[-1, 0] - MEAN
    torch.testing.assert_close(score(reward_model, input_ids, mask)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bucket_size", [1, 2, 16])
@torch.no_grad()
def test_values_are_the_head_at_every_position(reward_model: GPT2ForSequenceClassification, bucket_size: int) -> None:
    input_ids, mask = right_pad(SEQUENCES, PAD)
    _, response_mask = right_pad(RESPONSES, PAD)
    everywhere = token_values(reward_model, input_ids, mask, mask.bool(), bucket_size)
    before = response_values(reward_model, input_ids, mask, response_mask.bool(), bucket_size)
    assert everywhere.shape == input_ids.shape
    assert before.shape == response_mask.shape
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected = reward_model.score(hidden_states(reward_model, prompt + response))[:, 0] - MEAN
        torch.testing.assert_close(everywhere[row, : len(expected)], expected, atol=1e-5, rtol=0)
        # The value before the first response token is read at the prompt's last token; the response's last gives none.
        torch.testing.assert_close(before[row, : len(response)], expected[len(prompt) - 1 : -1], atol=1e-5, rtol=0)
        assert before[row, len(response) :].abs().sum() == 0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("bucket_size", [1, 2, 16])
def test_logprobs_and_entropy(policy: PreTrainedModel, temperature: float, bucket_size: int) -> None:
    input_ids, mask = right_pad(SEQUENCES, PAD)
    _, response_mask = right_pad(RESPONSES, PAD)
    logprobs, entropy = response_logprobs(policy, input_ids, mask, response_mask.bool(), temperature, bucket_size)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logits = policy(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / temperature
        distribution = torch.distributions.Categorical(logits=logits)
        expected = distribution.log_prob(torch.tensor(response))
        torch.testing.assert_close(logprobs[row, : len(response)], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy[row, : len(response)], distribution.entropy(), atol=1e-5, rtol=0)
        assert logprobs[row, len(response) :].abs().sum() + entropy[row, len(response) :].abs().sum() == 0
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_buckets_do_not_change_the_gradient(
    policy: PreTrainedModel, reward_model: GPT2ForSequenceClassification
) -> None:
    input_ids, mask = right_pad(SEQUENCES, PAD)
    response_mask = right_pad(RESPONSES, PAD)[1].bool()
    weights = torch.randn(response_mask.shape)
    gradients = []
    for bucket_size in (2, 16):
        policy.zero_grad()
        reward_model.zero_grad()
        logprobs, _ = response_logprobs(policy, input_ids, mask, response_mask, 1.0, bucket_size)
        values = response_values(reward_model, input_ids, mask, response_mask, bucket_size)
        ((logprobs + values) * weights).sum().backward()
        gradients.append([p.grad.clone() for m in (policy, reward_model) for p in m.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == len([*policy.parameters(), *reward_model.parameters()])
    for small, large in zip(*gradients, strict=True):
        torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-4)


def test_left_padding_is_refused(reward_model: GPT2ForSequenceClassification) -> None:
    with pytest.raises(ValueError, match="padded on the right"):
        score(reward_model, torch.tensor([[PAD, 5], [6, 7]]), torch.tensor([[0, 1], [1, 1]]))


def test_buckets_restore_the_order() -> None:
    mask = right_pad([[1] * length for length in (3, 1, 4, 1, 5, 2)], PAD)[1]
    seen = []

    def forward(rows: torch.Tensor) -> torch.Tensor:
        seen.append(mask[rows].sum(-1).tolist())
        return rows * 10

    assert in_length_buckets(forward, mask, 4).tolist() == [0, 10, 20, 30, 40, 50]
    assert seen == [[5, 4, 3, 2], [1, 1]]  # the longest first


def test_texts(nano_base: Path) -> None:
    """A response that comes as text is scored like its tokens, with the end of text only if it ended."""
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    settings = config(len(tokenizer))
    settings.pad_token_id = tokenizer.pad_token_id
    policy = GPT2LMHeadModel(settings).eval()
    settings.num_labels = 1
    reward_model = GPT2ForSequenceClassification(settings).eval()  # no reward_mean in its config: 0
    prompts = [[{"role": "user", "content": text}] for text in ("Hi", "Name a colour.", "Hi", "Why?", "Hi")]
    responses = [
        Response("green", True),
        Response("The capital of France", False),
        Response("green", False),
        Response("Paris", True, encode_response(tokenizer, "Paris")),
        Response("", True),
    ]
    scores = score_texts(reward_model, tokenizer, prompts, responses, batch_size=2)
    sums = sequence_logprobs(policy, tokenizer, prompts, responses, temperature=0.5, batch_size=2)
    for prompt, response, got, total in zip(encode_prompts(tokenizer, prompts), responses, scores, sums, strict=True):
        ids = encode_response(tokenizer, response.text, response.ended)
        whole = torch.tensor([prompt + ids])
        with torch.no_grad():
            assert got == pytest.approx(reward_model(whole).logits.item(), abs=1e-5)
            logprobs = (policy(whole).logits[0, len(prompt) - 1 : -1] / 0.5).log_softmax(-1)
        assert total == pytest.approx(logprobs.gather(-1, torch.tensor([ids]).T).sum().item(), abs=1e-4)
