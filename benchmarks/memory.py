"""What PPO and the reward model of a GPT-2 keep in memory, counted: bytes, by what they are for."""

from typing import Any

from rlhf_mini.models.scoring import BUCKET_SIZE


def parameters(config: Any) -> int:
    """Of a GPT-2; a layer has 12 d^2 weights in its four matrices, and 13 d in biases and norms."""
    d = config.n_embd
    return (config.vocab_size + config.n_positions + 2) * d + config.n_layer * (12 * d * d + 13 * d)


def activations(config: Any, tokens: int, predicted: int, outputs: int = 0, bf16: bool = False) -> float:
    """Bytes that a forward pass keeps for the backward pass, in models/gpt2.py.

    A layer keeps of each token: its input, the normed input, queries, keys and values twice (end to end and padded) and
    what attention makes of them; then that end to end, the sum, the normed sum, and the tensors of width 4 d around
    the activation function: 2, or 5 where transformers writes it out (gelu_new). The last layer goes on only at the
    positions asked for. With bf16 the sums stay in float32. `outputs` is the vocabulary, or 0 for a scalar.
    """
    d, layers, half = config.n_embd, config.n_layer, 0.5 if bf16 else 1.0
    wide = 5 if config.activation_function == "gelu_new" else 2
    first, second = d * (1 + 8 * half), d * (1 + (2 + 4 * wide) * half)
    kept = first * layers * tokens + second * ((layers - 1) * tokens + predicted)
    return 4 * (kept + predicted * (d * (1 + half) + outputs))


def ppo_memory(
    config: Any, prompt: int, response: int, episodes: int, minibatch: int, bf16: bool = False, reader: bool = True
) -> dict[str, float]:
    """Bytes of a run of PPO whose responses have all their tokens.

    Weights: policy, reference, reward model and the SFT model that it reads with (`reader`), value model, and the copy
    of the policy that is kept in case of a fault. Optimizer: gradients and two moments of policy and value model.
    Rollout: keys and values, of which there are two copies while finished rows leave. Update: what both keep of a
    minibatch, and of the policy also a bucket's logits with their gradients.
    """
    size, tokens, predicted = 4 * parameters(config), minibatch * (prompt + response), minibatch * response
    cache = 2 * config.n_layer * config.n_embd * episodes * (prompt + response) * (2 if bf16 else 4)
    logits = 3 * 4 * min(BUCKET_SIZE, minibatch) * response * config.vocab_size
    return {
        "weights": (5 + reader) * size,
        "optimizer": 6 * size,
        "rollout": 2 * cache,
        "policy": activations(config, tokens, predicted, config.vocab_size, bf16) + logits,
        "value_model": activations(config, tokens, predicted, bf16=bf16),
    }


def ppo_peak(parts: dict[str, float], at_once: bool = True) -> float:
    """Policy and value model learn at once, unless there is one thread; rollout and update take turns."""
    update = (sum if at_once else max)([parts["policy"], parts["value_model"]])
    return parts["weights"] + parts["optimizer"] + max(parts["rollout"], update)


def rm_peak(config: Any, tokens: int, rows: int, bf16: bool = False) -> float:
    """Bytes of training the reward model on `rows` of so many tokens at a time.

    Beside its weights, gradients and two moments: the SFT model, and a copy of the weights in case of a fault.
    """
    return 6 * 4 * parameters(config) + activations(config, rows * tokens, rows, bf16=bf16)
