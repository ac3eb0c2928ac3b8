"""The twelve bugs. Each is a context manager that patches public functions of the pipeline while it is entered:

    with BUGS["kl_sign"].switch_on():
        train_ppo(options)

The pipeline itself knows nothing of them. The docstring of a bug is its label in the museum: its name in a sentence,
what real code did, what to look at, where it was seen, and an exercise. docs/museum.md has what was measured.

Shapes: B responses, n their tokens end to end, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from inspect import cleandoc
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_mini.core.checkpoints import Checkpoint, load_checkpoint
from rlhf_mini.models import sampling, scoring
from rlhf_mini.models.rows import Rows
from stages.ppo import losses, metrics
from stages.ppo import run as ppo_run
from stages.ppo.models import Models, load_models
from stages.ppo.options import PPOOptions
from stages.rm import train as rm_train
from stages.sft import train as sft_train

Pairs = Iterable[tuple[list[int], list[int]]]

# --- in PPO ----------------------------------------------------------------------------------------------------------


@contextmanager
def kl_sign() -> Iterator[None]:
    """The log-ratio of the KL is the wrong way round.

    The code has ref_logprob - logprob where it needs logprob - ref_logprob. Each token far from SFT is now paid for,
    not charged: the penalty has become a bonus.

    Look at: the KL, which is logged with the same wrong sign and falls below 0, where a KL cannot be. Without its sign
    it is larger than the healthy one.

    Seen: ChatLLaMA, https://github.com/nebuly-ai/optimate/issues/298; and a bug that flipped both this sign and that of
    the reward, Ziegler et al. 2019, section 4.4, https://arxiv.org/abs/1909.08593

    Exercise: KL and score alone cannot tell this from samples that are not the policy's own, whose KL is negative,
    too. Which metric in metrics.jsonl can?
    """
    with patch.object(losses, "kl_k1", lambda logprobs, ref_logprobs: ref_logprobs - logprobs):
        yield


@contextmanager
def wrong_token() -> Iterator[None]:
    """The score is credited one position past the end of its response.

    The index of the last token is one too large. In padded rows the score then stands on padding; here, where rows lie
    end to end, the next response gets it.

    Look at: explained variance and score. No value model can know the score of another prompt's response, and no
    policy can earn it.

    Seen: TRL's PPOTrainer adds the score at the first pad token, https://github.com/huggingface/trl/issues/3750 and
    https://github.com/huggingface/trl/issues/1893

    Exercise: the value loss is far higher than in the healthy run, from the first iteration to the last. How would it
    look if the value model were merely slow to learn?
    """

    def compute_rewards(scores: Tensor, kl: Tensor, rows: Rows, kl_coef: float) -> Tensor:
        return (-kl_coef * kl).index_add(0, (rows.last + 1) % len(kl), scores)

    with patch.object(losses, "compute_rewards", compute_rewards):
        yield


@contextmanager
def dropout() -> Iterator[None]:
    """The policy is in train mode, so dropout is on in rollout and update.

    Each forward pass thins the model anew. The log-probabilities of the rollout belong to one thinned model, those of
    the update to others: a ratio of 1, where nothing has been learned yet, is no longer 1.

    Look at: the error of the first ratio, and the KL of the first iteration, where the policy is still the SFT model.

    Seen: TRL, whose trainer generated without calling eval(), https://github.com/huggingface/trl/issues/155; Huang et
    al. 2024 explain why it matters, https://arxiv.org/abs/2403.17031

    Exercise: left padding without positions shows in the same two metrics. What in the later iterations tells the two
    apart?
    """

    def load(*args: Any) -> Models:
        models = load_models(*args)
        for module in models.policy.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1  # GPT-2's default; the mini base was trained without
        return models

    with patch.object(ppo_run, "load_models", load):
        yield


@contextmanager
def kl_per_token() -> Iterator[None]:
    """The adaptive KL controller gets the KL of a token instead of that of a response.

    The target is in nats per response, the KL that is compared with it is a mean over tokens, many times smaller. The
    controller takes the policy for far too close to SFT and lowers the coefficient in every iteration.

    Look at: the coefficient, which falls while the KL is above its target. Both runs have a target of half a nat.

    Seen: trlx, mended in https://github.com/CarperAI/trlx/pull/441

    Exercise: how high would the target have to be for the buggy controller to hold the KL where the healthy one does?
    """
    adapt, rollout_metrics, lengths = losses.adapt_kl_coef, metrics.rollout_metrics, [1.0]

    def note_length(*args: Any) -> dict[str, float]:
        found = rollout_metrics(*args)
        lengths.append(found["response/length"])
        return found

    def adapt_kl_coef(kl_coef: float, kl: float, *others: Any) -> float:
        return adapt(kl_coef, kl / lengths[-1], *others)

    with (
        patch.object(metrics, "rollout_metrics", note_length),
        patch.object(losses, "adapt_kl_coef", adapt_kl_coef),
    ):
        yield


@contextmanager
def filtered_sampling() -> Iterator[None]:
    """Responses are sampled with top-k, but scored under the full distribution.

    Libraries that generate text filter by default. The responses are then no samples of the policy, so the mean
    log-ratio over them is no KL, it may even be negative, and the likely tokens alone are ever tried.

    Look at: how likely the policy finds its samples. On average, -log p of a sample is the entropy of its distribution;
    in metrics.jsonl, objective/entropy is the one, summed over a response, and policy/entropy the other, per token.

    Seen: TRL, which warns of negative KL because generation settings are so often the cause,
    https://github.com/huggingface/trl/issues/235

    Exercise: the first KL and the ratio are as they should be, although sampling and scoring disagree. Why?
    """
    draw = sampling.draw

    def draw_of_top_2(logits: Tensor, uniforms: Tensor) -> Tensor:
        least = logits.topk(2).values[:, -1:]  # (B, 1)
        return draw(logits.masked_fill(logits < least, -torch.inf), uniforms)

    with patch.object(sampling, "draw", draw_of_top_2):
        yield


@contextmanager
def left_padding() -> Iterator[None]:
    """Rows are padded on the left, and the positions of a forward pass count the padding.

    Generation makes positions of its own from the attention mask; the other passes leave them to the model, which
    counts from the first pad token. A model with absolute positions, such as GPT-2, then reads another text.

    Look at: the error of the first ratio and the KL of the first iteration. Only rows shorter than the longest beside
    them are affected.

    Seen: OpenRLHF, https://github.com/OpenRLHF/OpenRLHF/issues/217; TRL, https://github.com/huggingface/trl/issues/6800

    Exercise: with a single row in each pass, the symptom would be gone. Why, and why would that be no repair?
    """
    lay_out = scoring.lay_out

    def lay_out_padded(*args: Any) -> scoring.Inputs:
        inputs = lay_out(*args)
        rows = inputs.rows
        padding = rows.shape[1] - rows.lengths  # (B,)
        rows.position_ids = rows.position_ids + padding.repeat_interleave(rows.lengths)  # of prompts and responses
        return inputs

    with patch.object(scoring, "lay_out", lay_out_padded):
        yield


# --- in the reward model ---------------------------------------------------------------------------------------------


@contextmanager
def swapped_pairs() -> Iterator[None]:
    """Chosen and rejected are swapped where the reward model is trained.

    A column is mistaken for the other, or 1 for the worst rank. The loss falls and the accuracy in training rises as
    ever, as both go by the swapped labels. PPO then maximises what people dislike.

    Look at: the accuracy on rankings that were not swapped, below that of a coin.

    Seen: a sign of OpenAI's that turned the reward round: it "optimized for negative sentiment while preserving natural
    language", Ziegler et al. 2019, section 4.4, https://arxiv.org/abs/1909.08593

    Exercise: which curves of the two runs could you tell apart if you did not know which is which?
    """
    encode = rm_train.encode_fitting

    def encode_swapped(*args: Any) -> Iterator[rm_train.Example]:
        return (example._replace(ranks=[-rank for rank in example.ranks]) for example in encode(*args))

    with patch.object(rm_train, "encode_fitting", encode_swapped):
        yield


@contextmanager
def untrained_rm() -> Iterator[None]:
    """The reward model's head is new, because the trained one was not saved.

    An adapter is saved without the head, or merged into a language model, which has none. Loading it again fills the
    gap with random numbers and says so in a warning among many.

    Look at: the reward model's accuracy on held-out rankings. PPO's score rises as ever: random numbers can be
    maximised, too.

    Seen: TRL, https://github.com/huggingface/trl/issues/1379 and https://github.com/huggingface/trl/issues/368

    Exercise: read ten responses of each run. Could you tell from them that there is no reward in the score?
    """

    def train(reward_model: Any, *args: Any, **kwargs: Any) -> None:
        head = reward_model.score.weight  # (1, d)
        torch.nn.init.normal_(head, std=(head.shape[1] + 1) ** -0.5)

    with patch.object(rm_train, "train", train):
        yield


@contextmanager
def another_sft() -> Iterator[None]:
    """The reward model was trained on the responses of another SFT model.

    SFT was trained again, here for a shorter time, and the reward model of before was kept. It judges responses unlike
    those it has seen ranked. PPO refuses such a pair; this switches the check off.

    Look at: the checkpoints that the doctor compares. The curves do not show it.

    Seen: Llama 2, whose authors collected preferences anew for each model because accuracy "can quickly degrade",
    Touvron et al. 2023, section 3.2.1, https://arxiv.org/abs/2307.09288; trlx, where even the tokenizers differed,
    https://github.com/CarperAI/trlx/issues/325

    Exercise: the first score is that of SFT, before any PPO. What does it say here, and what would you have to know to
    notice?
    """

    def find_reward_model(options: PPOOptions, sft: Checkpoint) -> Checkpoint:
        return load_checkpoint(options.run_dir / "rm", "rm")  # `of=sft` would refuse it

    with patch.object(ppo_run, "find_reward_model", find_reward_model):
        yield


# --- in SFT ----------------------------------------------------------------------------------------------------------


@contextmanager
def pad_is_eos() -> Iterator[None]:
    """Padding is masked by its token id, which is that of the end of text, too.

    The tokenizer has no pad token, so the end of text is made one. Where the loss then leaves out padding, it leaves
    out each end of text with it, and nothing ever teaches the model to stop.

    Look at: the share of responses with an end, and their length.

    Seen: TRL's DataCollatorForCompletionOnlyLM, https://github.com/huggingface/trl/issues/976

    Exercise: the base had learned to end its texts. Why do some responses still end?
    """

    def without_eos(model: Any, labels: Tensor) -> Tensor:
        return labels != model.config.eos_token_id

    def completion_loss(model: Any, batch: Sequence[sft_train.Example]) -> Tensor:
        prompts, completions = [each.prompt_ids for each in batch], [each.completion_ids for each in batch]
        ids, rows, completion = scoring.lay_out(prompts, completions, model.device)
        with sft_train.forward_pass(model) as forward:
            logits = forward(ids, rows, keep=completion - 1)  # (n, V)
        counts = without_eos(model, ids[completion])  # (n,)
        return F.cross_entropy(logits[counts], ids[completion][counts])

    def text_loss(model: Any, texts: Sequence[list[int]]) -> Tensor:
        labels = torch.tensor([token for text in texts for token in text[1:]], device=model.device)  # (n,)
        return -scoring.text_logprobs(model, texts)[without_eos(model, labels)].mean()

    with (
        patch.object(sft_train, "completion_loss", completion_loss),
        patch.object(sft_train, "text_loss", text_loss),
    ):
        yield


@contextmanager
def no_eos_template() -> Iterator[None]:
    """The chat template writes no end of text after a response.

    The demonstrations just stop. After a completion the model has seen nothing, neither the end of text nor what it
    would mask, and in a conversation it goes on in whatever way the web does. `load_tokenizer` refuses such a template;
    this takes the token away later.

    Look at: the share of responses with an end, and how the responses go on.

    Seen: TRL's SFTTrainer, https://github.com/huggingface/trl/issues/1623

    Exercise: pad = eos has the same symptom. What do you print to tell which of the two it is?
    """
    encode = sft_train.encode_demonstrations

    def encode_without_eos(*args: Any) -> Pairs:
        return ((prompt, completion[:-1]) for prompt, completion in encode(*args))

    with patch.object(sft_train, "encode_demonstrations", encode_without_eos):
        yield


@contextmanager
def prompt_in_loss() -> Iterator[None]:
    """The loss of SFT counts the prompts' tokens, too.

    The mask of the completions got lost on the way. The model learns to write prompts as much as to answer them.

    Look at: the loss before the first step, on the same held-out demonstrations and of the same base. It can only
    differ if it is a mean over other tokens.

    Seen: nanochat, where a rewrite dropped the mask, https://github.com/karpathy/nanochat/pull/582

    Exercise: is the loss after training higher because the model is worse? Name a measure that both runs share.
    """
    encode = sft_train.encode_demonstrations

    def encode_as_one(*args: Any) -> Pairs:
        return ((prompt[:1], prompt[1:] + completion) for prompt, completion in encode(*args))

    with patch.object(sft_train, "encode_demonstrations", encode_as_one):
        yield


# --- the museum's list -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bug:
    """A bug with its label."""

    switch_on: Callable[[], AbstractContextManager[None]]
    trained: tuple[str, ...]
    """The stages that are trained for it; the others are taken from the run that is given."""
    figures: tuple[tuple[str, str], ...]
    """What to plot: a stage and a name in its metrics.jsonl."""
    checks: tuple[str, ...]
    """The doctor's checks that find it; () if none can."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options by stage that both runs need, so that there is something to see."""
    own_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options by stage of the buggy run alone: they are part of the bug."""

    @property
    def name(self) -> str:
        return self.switch_on.__name__

    @property
    def paragraphs(self) -> list[str]:
        """The label: title, text, "Look at: ...", "Seen: ...", "Exercise: ..."."""
        return [" ".join(part.split()) for part in cleandoc(self.switch_on.__doc__ or "").split("\n\n")]

    @property
    def title(self) -> str:
        return self.paragraphs[0]

    @property
    def healthy(self) -> str:
        """The name of the run beside it: as long, without the bug. It must not give a mystery away."""
        return "-".join(["healthy", self.trained[0], *(name for of in self.settings.values() for name in of)])


PPO, RM, SFT = ("ppo",), ("rm", "ppo"), ("sft", "rm", "ppo")  # a bug in one stage reaches all that come after it
KL, SCORE, LENGTH = ("ppo", "objective/kl"), ("ppo", "objective/scores"), ("ppo", "response/length")
RATIO, EOS = ("ppo", "policy/first_ratio_error"), ("ppo", "response/eos_rate")
EXPLAINED, KL_COEF = ("ppo", "value/explained_variance"), ("ppo", "objective/kl_coef")
ENTROPY, SFT_LOSS = ("ppo", "objective/entropy"), ("sft", "eval_loss")

ALL = (
    Bug(kl_sign, PPO, (KL, SCORE), ("KL sign",)),
    Bug(wrong_token, PPO, (EXPLAINED, SCORE), ("value model",)),
    Bug(dropout, PPO, (RATIO, KL), ("first KL",)),
    Bug(
        kl_per_token, PPO, (KL_COEF, KL), ("KL controller",),
        settings={"ppo": dict(kl_target=0.5, kl_horizon=256)},
    ),
    Bug(filtered_sampling, PPO, (ENTROPY, KL), ("sampling",)),
    Bug(left_padding, PPO, (RATIO, KL), ("first KL", "ratio")),
    Bug(
        swapped_pairs, RM, (("rm", "accuracy"), SCORE), ("accuracy",),
        # With its usual learning rate, a judge that was pretrained on votes withstands so few wrong rankings.
        settings={"rm": dict(likelihood=False, learning_rate=2e-3)},
    ),
    Bug(untrained_rm, RM, (SCORE, KL), ("accuracy",), own_settings={"rm": dict(init="sft", likelihood=False)}),
    Bug(another_sft, ("sft", "ppo"), (SCORE, KL), ("SFT checkpoint",)),
    Bug(pad_is_eos, SFT, (EOS, LENGTH), ("eos",)),
    Bug(no_eos_template, SFT, (EOS, LENGTH), ("eos",)),
    Bug(prompt_in_loss, SFT, (SFT_LOSS, SCORE), ()),
)  # fmt: skip
BUGS = {bug.name: bug for bug in ALL}
