"""PPO against the exact optimum, in a world small enough to enumerate; and broken PPO, which has to miss it.

Five tokens and at most two steps make 21 responses. The best policy for a prompt (it maximises InstructGPT's equation
2 over all distributions of responses) is then known:

    pi*(y|x) ~ pi_ref(y|x) exp(r(x, y) / kl_coef)

It is computed here by plain enumeration, in float64, from transformers' own forward passes of one unpadded row each.
Rollout, rewards, advantages and optimizer steps are the stage's own. Distances are total variations between
distributions of whole responses, at the prompt where they are largest.

Each broken variant changes one thing, as real code bases had it, and is trained as long as the right one.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from ppo_batch import collect
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_mini.core.examples import Response
from rlhf_mini.models import sampling, scoring, text
from rlhf_mini.models.forward import forward_pass
from rlhf_mini.models.rows import Rows
from stages.ppo import losses, train
from stages.ppo.models import Models
from stages.ppo.options import PPOOptions
from stages.ppo.run import Learner

pytestmark = pytest.mark.usefixtures("one_thread")

VOCABULARY = "_.>ab"  # pad, eos, the beginning of the assistant's turn, two letters
PAD, EOS = 0, 1
PROMPTS = ["a", "ba", "abba"]  # of different lengths, so that padding and positions matter
RESPONSES = [(EOS,), *product([PAD, 2, 3, 4], range(5))]  # two tokens that do not begin with the eos: ended, or cut
CLOSE, FAR = 0.02, 0.05  # total variation

OPTIONS = PPOOptions(
    updates=150, episodes=96, num_minibatches=1, num_ppo_epochs=1, max_new_tokens=2, temperature=1.0, kl_coef=1.0,
    missing_eos_penalty=0.5, learning_rate=4e-3, value_learning_rate=4e-3, bucket_size=96,
    ptx_coef=0.0,
)  # fmt: skip


@dataclass
class World:
    """Random models, and a random score for each response to each prompt."""

    options: PPOOptions
    models: Models
    scores: dict[str, Tensor]  # (21,) each


class Characters(PreTrainedTokenizerFast):
    """Each character is a token. A chat template does the same, but takes a third of these tests' time."""

    def apply_chat_template(self, conversation: Any, **_: Any) -> list[str]:
        return [messages[0]["content"] + ">" for messages in conversation]


def new_world(seed: int = 0, **changes: Any) -> World:
    torch.manual_seed(seed)
    characters = Tokenizer(WordLevel({token: index for index, token in enumerate(VOCABULARY)}, unk_token="_"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = Characters(tokenizer_object=characters, pad_token="_", eos_token=".")
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=16, n_embd=32, n_layer=1, n_head=2, initializer_range=0.1,
        activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, num_labels=1,
        pad_token_id=PAD, eos_token_id=EOS, bos_token_id=EOS,
    )  # fmt: skip
    policy, value_model = GPT2LMHeadModel(config).eval(), GPT2ForSequenceClassification(copy.deepcopy(config)).eval()
    scores = {prompt: torch.randn(len(RESPONSES)) for prompt in PROMPTS}

    def reward(prompts: Any, responses: Any) -> list[float]:
        pairs = zip(prompts, responses, strict=True)
        return [scores[p.messages[0]["content"]][RESPONSES.index(tuple(response.ids))].item() for p, response in pairs]

    models = Models(policy, value_model, copy.deepcopy(policy), reward, tokenizer)
    return World(replace(OPTIONS, seed=seed, **changes), models, scores)


@torch.no_grad()
def enumerated(model: Any, prompt: str, temperature: float) -> Tensor:
    """log p(response | prompt) of all RESPONSES (21,)."""
    model = copy.deepcopy(model).double().eval()
    ids = [VOCABULARY.index(character) for character in prompt + ">"]
    logprobs = []
    for response in RESPONSES:
        logits = model(torch.tensor([[*ids, *response]])).logits[0, len(ids) - 1 : -1]
        logprobs.append((logits / temperature).log_softmax(-1)[range(len(response)), response].sum())
    return torch.stack(logprobs)


def distance(world: World) -> float:
    """From the policy to the optimum."""
    distances, options = [], world.options
    cut = torch.tensor([response[-1] != EOS for response in RESPONSES])
    for prompt in PROMPTS:
        ref_logprobs = enumerated(world.models.ref_policy, prompt, options.temperature)
        rewards = world.scores[prompt].double() - options.missing_eos_penalty * cut
        optimum = (ref_logprobs + rewards / options.kl_coef).softmax(-1)
        policy = enumerated(world.models.policy, prompt, options.temperature).exp()
        assert policy.sum().item() == pytest.approx(1, abs=1e-9)  # no response is missing
        distances.append((policy - optimum).abs().sum().item() / 2)
    return max(distances)


def practise(world: World) -> list[dict[str, float]]:
    """PPO without the stage around it. Returns the metrics of each update."""
    options, models = world.options, world.models
    learner, history = Learner(models, options), []
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS] * (options.episodes // len(PROMPTS))
    for update in range(options.updates):
        share = 1 - update / options.updates  # to 0: what is left is no noise
        learner.set_rates(share, share)
        batch = collect(models, prompts, options, learner.generator)
        history.append(train.ppo_epochs(models, learner.optimizers, batch, options, learner.generator, iter([])))
    return history


@pytest.mark.parametrize(
    ("seed", "changes"),
    [
        (0, {}),
        (1, {"missing_eos_penalty": 0.0, "num_minibatches": 2, "num_ppo_epochs": 2}),
        (2, {"temperature": 0.7, "updates": 250}),
    ],
    ids=["plain", "four steps an update", "temperature"],
)
def test_ppo_finds_the_optimum(seed: int, changes: dict[str, Any]) -> None:
    world = new_world(seed, **changes)
    assert distance(world) > 0.2
    history = practise(world)
    assert distance(world) < CLOSE
    assert max(metrics["policy/first_ratio_error"] for metrics in history) < 1e-4
    if world.options.steps > 1:
        assert max(metrics["policy/clip_fraction"] for metrics in history) > 0.1  # the clip took part


# --- broken variants -------------------------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def kl_sign_flipped(world: World, patch: Patch) -> None:
    patch.setattr(losses, "kl_k1", lambda logprobs, ref_logprobs: ref_logprobs - logprobs)


def k3_in_the_reward(world: World, patch: Patch) -> None:
    """Right on average as a number, but its own gradient, which no policy gradient takes, is not 0 on average."""
    patch.setattr(losses, "kl_k1", losses.kl_k3)


def score_on_the_first_token(world: World, patch: Patch) -> None:
    """What follows the first token gets no credit. (Gamma 1: on a later token than the right one, all would get it.)"""

    def compute_rewards(scores: Tensor, kl: Tensor, rows: Rows, kl_coef: float) -> Tensor:
        return (-kl_coef * kl).index_add(0, rows.first, scores)

    patch.setattr(losses, "compute_rewards", compute_rewards)


def score_one_past_the_end(world: World, patch: Patch) -> None:
    """No token is there: only the KL is left."""
    patch.setattr(losses, "compute_rewards", lambda scores, kl, rows, kl_coef: -kl_coef * kl)


def dropout_on(world: World, patch: Patch) -> None:
    """In the policy. What is learned fits the thinned models that sampled, not the whole one."""
    for module in world.models.policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    world.models.policy.train()


def pad_is_eos(world: World, patch: Patch) -> None:
    """A mask made as `response_ids != pad` leaves the eos out: whether to stop is hardly ever learned."""
    original, reward = sampling.sample, world.models.reward
    whole: list[list[int]] = []  # what was really sampled: the reward still reads all of it

    def sample(*args: Any, **kwargs: Any) -> sampling.Rollout:
        rollout = original(*args, **kwargs)
        whole[:] = rollout.response_ids
        kept = [ids[:-1] if ids[-1] == EOS and len(ids) > 1 else ids for ids in whole]
        pairs = zip(kept, Rows([len(ids) for ids in whole]).split(rollout.logprobs), strict=True)
        return sampling.Rollout(response_ids=kept, logprobs=torch.cat([row[: len(ids)] for ids, row in pairs]))

    def to_responses(tokenizer: Any, sampled: list[list[int]]) -> list[Response]:
        return [Response("", full[-1] == EOS, ids) for full, ids in zip(whole, sampled, strict=True)]

    patch.setattr(sampling, "sample", sample)
    patch.setattr(text, "to_responses", to_responses)
    world.models.reward = lambda prompts, _: reward(prompts, [Response("", True, ids) for ids in whole])


def _shift_positions(model: Any, when: Callable[[Rows], bool]) -> None:
    """Counts padding on the left of a row into its positions."""

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rows = kwargs.get("rows")
        if isinstance(rows, Rows) and when(rows):
            row = rows.index // rows.shape[1]  # (N,)
            kwargs["position_ids"] = kwargs["position_ids"] + (rows.shape[1] - row.bincount())[row]
        return args, kwargs

    model.register_forward_pre_hook(before, with_kwargs=True)


def positions_count_padding_in_the_update(world: World, patch: Patch) -> None:
    _shift_positions(world.models.policy, when=lambda rows: rows.cache is None)


def positions_count_padding_in_the_reference(world: World, patch: Patch) -> None:
    _shift_positions(world.models.ref_policy, when=lambda rows: True)


def positions_count_padding_in_the_rollout(world: World, patch: Patch) -> None:
    _shift_positions(world.models.policy, when=lambda rows: rows.cache is not None)


def values_one_token_late(world: World, patch: Patch) -> None:
    """They have seen the token, so they take away what it has earned."""

    def response_values(model: Any, prompts: Any, responses: Any, bucket_size: int) -> Any:
        inputs = scoring.lay_out(prompts, responses, model.device)
        with forward_pass(model) as forward:
            return forward(inputs.ids, inputs.rows, keep=inputs.response).squeeze(-1)

    patch.setattr(scoring, "response_values", response_values)


def sampling_from_the_top_3(world: World, patch: Patch) -> None:
    """The log-probabilities kept are still those of the full distribution."""
    original = sampling.draw

    def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
        return original(logits.masked_fill(logits < logits.topk(3).values[:, -1:], -torch.inf), uniforms)

    patch.setattr(sampling, "draw", draw)


def reference_at_another_temperature(world: World, patch: Patch) -> None:
    original = scoring.response_logprobs

    def response_logprobs(model: Any, prompts: Any, responses: Any, temperature: float, size: int) -> scoring.Logprobs:
        temperature = 0.7 if model is world.models.ref_policy else temperature
        return original(model, prompts, responses, temperature, size)

    patch.setattr(scoring, "response_logprobs", response_logprobs)


VARIANTS: list[Callable[[World, Patch], None]] = [
    kl_sign_flipped,
    k3_in_the_reward,
    score_on_the_first_token,
    score_one_past_the_end,
    dropout_on,
    pad_is_eos,
    positions_count_padding_in_the_update,
    positions_count_padding_in_the_rollout,
    positions_count_padding_in_the_reference,
    values_one_token_late,
    sampling_from_the_top_3,
    reference_at_another_temperature,
]
# Their rollout and their update see different models: the ratio before the first step is not 1.
TWO_MODELS = {dropout_on, positions_count_padding_in_the_update, positions_count_padding_in_the_rollout}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_broken_ppo_misses_the_optimum(variant: Callable[[World, Patch], None], monkeypatch: Patch) -> None:
    """With seed and options of the first case above."""
    world = new_world()
    variant(world, monkeypatch)
    history = practise(world)
    assert distance(world) > FAR
    assert (history[0]["policy/first_ratio_error"] > 1e-2) == (variant in TWO_MODELS)
