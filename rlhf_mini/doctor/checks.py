"""The checks: pure functions that take logged metrics and return a finding, with the bounds they hold them to.

A check returns None if there is too little to judge by. `python -m rlhf_mini.doctor` reads the metrics and prints the
findings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median, stdev
from typing import Any, Literal

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.doctor.outputs import Comparison

# The bounds. Each comment says what is bounded and what the default recipe measured with seeds 0 to 4.
OVERFIT_LOSS = 1.3  # SFT's validation loss / training loss: 0.94 to 1.08
MIN_ACCURACY = 0.55  # of the RM on pairs; chance is 0.5: 0.65 to 0.67 on the labelers it was trained on
ACCURACY_GAP = 0.10  # agreement of the labelers - RM accuracy: 0.05 to 0.07
OVERFIT_ACCURACY = 0.1  # RM accuracy in training - on held-out rankings of the same sources: 0.00 to 0.03
MIN_READING = 0.75  # the prompt's own answer above another's, at equal manners; chance is 0.5: 0.97 to 0.99
MIN_SCORE_STD = 0.1  # standard deviation of the RM's scores: 0.72 to 0.84
MIN_SCORE_GAIN = 0.1  # gain of PPO's mean score, in standard deviations of the first (chance: 0.06): 0.20 to 0.33
SAME_SCORE = 1e-6  # standard deviation of an iteration's scores; below, only rounding tells them apart: at least 0.5
KL_HIGH, KL_BLOWN_UP = 15.0, 30.0  # nats per response; the recipe's own limit is 15: 1.4 to 2.4
KL_NEGATIVE = -0.05  # nats; a KL is never negative, its estimate only by chance: at least 0.01
MAX_FIRST_KL = 0.01  # nats in the first iteration, where the policy is still the SFT model: at most 2e-6
MIN_KL_REACHED = 1e-3  # nats; a policy that stays this close to SFT has learned nothing: at least 1.9
ENTROPY_LOW, ENTROPY_COLLAPSED = 0.3, 0.1  # entropy per token / that of the first iteration: 0.50 to 0.64
EOS_LOW, EOS_MISSING = 0.9, 0.5  # share of responses that end with eos: at least 0.96
MIN_LENGTH_RATIO, MAX_LENGTH_RATIO = 1 / 3, 1.5  # response length / that of the first iteration: 0.9 to 1.0
MAX_RATIO_ERROR_BF16 = 0.3  # bfloat16 has steps of 1/16 between logits of 8 and 16
MAX_RATIO_ERROR = 1e-3  # |ratio - 1| in the first minibatch, which only rounding explains: at most 3e-5
MAX_SURPRISE_ERROR = 0.1  # |mean -log p of the samples / entropy - 1|, which only chance explains: at most 0.02
MIN_EXPLAINED = 0.1  # explained variance, median of the second half; a constant value explains 0: at least 0.88
SCORES_DIFFER = 0.1  # standard deviation of an iteration's scores / that of the first: at least 0.70
MAX_CLIPPED = 0.3  # share of clipped tokens in any iteration: at most 0.01


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Literal["pass", "warn", "fail", "todo"]
    name: str
    text: str
    advice: str = ""


def verdict(name: str, measured: str, problem: str, advice: str, *, fail: bool = False, warn: bool = False) -> Finding:
    """A finding whose text states what was measured and, if the check did not pass, the problem and the advice."""
    if not (fail or warn):
        return Finding("pass", name, measured)
    return Finding("fail" if fail else "warn", name, f"{measured}: {problem}", advice)


def final(values: Sequence[float]) -> float:
    """The mean over the last tenth."""
    return mean(values[-math.ceil(len(values) / 10) :])


# --- all stages ------------------------------------------------------------------------------------------------------


def finished(complete: bool, stopped: str | None, remedy: str) -> Finding:
    """`complete`: whether there is a stage.json; `stopped`: why the stage stopped early; `remedy`: how to rerun it."""
    if stopped:
        advice = "follow the advice of the checks that failed here; if none did, a lower --learning_rate"
        return Finding("fail", "finished", f"stopped: {stopped}", advice)
    if not complete:
        return Finding("todo", "finished", f"no, it is still running or was killed; if it was killed, {remedy}")
    return Finding("pass", "finished", "yes")


def finite_metrics(lines: Sequence[dict[str, Any]]) -> Finding:
    """`lines` of metrics.jsonl, which has null for NaN and infinities."""
    missing = sorted({name for line in lines for name, value in line.items() if value is None})
    measured = f"{', '.join(missing)} not finite" if missing else f"finite in all {len(lines)} lines of metrics.jsonl"
    problem = "NaN or infinity, so the weights may be damaged too"
    return verdict("metrics", measured, problem, "a lower --learning_rate", fail=bool(missing))


def learning_rate(rates: Sequence[float]) -> Finding | None:
    if len(rates) < 2:
        return None
    low, high = min(rates), max(rates)
    problem = "the learning rate never changed" + (", so nothing was learned" if high == 0 else "")
    advice = "check the schedule in rlhf_mini/training/schedule.py; --learning_rate sets only its peak"
    return verdict("learning rate", f"{low:.2g} to {high:.2g}", problem, advice, fail=low == high)


def same_checkpoint(stage: str, used: Sequence[str], current: str | None, remedy: str) -> Finding | None:
    """Whether a stage was trained from the checkpoint of `stage` that is in the run now.

    Args:
        used: checksums of the weights it was trained from.
        current: checksum of the weights in the run.
        remedy: how to train it again.
    """
    if not used or current is None:
        return None
    same = current in used
    measured = f"trained from this run's {stage.upper()}" if same else f"trained from another {stage.upper()}"
    problem = "one of the two was retrained since"
    return verdict(f"{stage.upper()} checkpoint", measured, problem, remedy, fail=not same)


# --- SFT -------------------------------------------------------------------------------------------------------------


def validation_loss(losses: Sequence[float]) -> Finding | None:
    if len(losses) < 2:
        return None
    measured = f"{losses[0]:.2f} -> {losses[-1]:.2f}"
    advice = "another --learning_rate, more --num_train_epochs; check the file that --demonstrations names"
    return verdict("validation loss", measured, "it did not fall", advice, fail=losses[-1] >= losses[0])


def overfitted_loss(training: Sequence[float], validation: Sequence[float]) -> Finding | None:
    if not training or len(validation) < 2:
        return None
    ratio = f"(at most {OVERFIT_LOSS} times that)"
    measured = f"training loss {final(training):.2f}, validation loss {validation[-1]:.2f} {ratio}"
    advice = "fewer --num_train_epochs, some --dropout, or more demonstrations"
    overfits = validation[-1] > OVERFIT_LOSS * final(training)
    return verdict("overfitting", measured, "it overfits the demonstrations", advice, warn=overfits)


# --- RM --------------------------------------------------------------------------------------------------------------


def accuracy(rm: Estimate | None, labelers: float | None) -> Finding | None:
    """`rm`: share of the labelers' pairs that the RM orders as they do; `labelers`: agreement among themselves."""
    if rm is None:
        return None
    measured = f"{rm.mean:.0%} of the labelers' pairs, 95 % {rm.low:.0%} to {rm.high:.0%} (at least {MIN_ACCURACY:.0%})"
    problem = "near 50 %, no better than chance"
    advice = "another --learning_rate, more rankings; read rankings.jsonl: would you rank the same way?"
    if labelers is not None and labelers < MIN_ACCURACY:
        advice = (
            f"other --labelers: these agree with each other on only {labelers:.0%} of pairs, so no RM can learn them"
        )
    elif rm.high < 0.5:
        problem = "below chance: are the ranks reversed? 1 is the best"
    elif rm.mean >= MIN_ACCURACY:
        problem = "the interval includes 50 %"
        advice = "more --num_validation_prompts, or more held-out rankings"
    return verdict("accuracy", measured, problem, advice, fail=rm.mean < MIN_ACCURACY, warn=rm.low <= 0.5)


def below_agreement(rm: float | None, labelers: float | None) -> Finding | None:
    """The shares as for `accuracy`."""
    if rm is None or labelers is None:
        return None
    gap = labelers - rm
    measured = f"RM {rm:.0%}, labelers {labelers:.0%} (at most {100 * ACCURACY_GAP:.0f} points lower)"
    advice = "more --num_prompts or --num_responses, another --learning_rate"
    problem = "its error rate exceeds labeler disagreement"
    return verdict("agreement", measured, problem, advice, warn=gap > ACCURACY_GAP)


def overfitted_accuracy(training: Sequence[float], rm: float | None) -> Finding | None:
    """`training`: accuracy step by step; `rm`: on held-out rankings of responses from the same sources."""
    if not training or rm is None:
        return None
    measured = f"{final(training):.0%} in training, {rm:.0%} on held-out rankings"
    advice = "fewer --num_train_epochs (the paper trains for 1), more rankings"
    overfits = final(training) - rm > OVERFIT_ACCURACY
    return verdict("overfitting", measured, "it overfits the rankings", advice, warn=overfits)


def score_spread(std: float | None) -> Finding | None:
    if std is None:
        return None
    measured = f"standard deviation {std:.2f} (at least {MIN_SCORE_STD})"
    advice = "a higher --learning_rate, more rankings"
    return verdict("score spread", measured, "all responses get the same score", advice, fail=std < MIN_SCORE_STD)


def reading(own_answer: Estimate | None, other_kind: Estimate | None) -> Finding | None:
    """Shares of pairs in which the prompt's own answer scores higher than another prompt's, at the same manners.

    Args:
        own_answer: over answers to prompts of the same kind.
        other_kind: over answers to prompts of other kinds.
    """
    found = {"of the same kind": own_answer, "of another kind": other_kind}
    shares = {of: share for of, share in found.items() if share}
    if not shares:
        return None
    told = ", ".join(f"{of} {share.mean:.0%}" for of, share in shares.items())
    measured = f"own answer over that to a prompt {told} (at least {MIN_READING:.0%})"
    problem = "the reward model hardly reads the prompt"
    advice = "--rankings whose responses differ in content, and more steps: more --num_prompts or --num_train_epochs"
    hardly = any(share.high < MIN_READING for share in shares.values())
    return verdict("reading", measured, problem, advice, warn=hardly)


# --- PPO: KL to the SFT model, in nats per response; one value an iteration ------------------------------------------


def first_kl(kl: Sequence[float]) -> Finding | None:
    if not kl:
        return None
    measured = f"{kl[0]:+.4f} nats (0 up to rounding)"
    problem = "the policy is still the SFT model then, so sampling and scoring disagree"
    advice = (
        "compare temperature, filters (top-k), dropout and padding in sampling and scoring; "
        "both are called by `rollout` in stages/ppo/train.py"
    )
    return verdict("first KL", measured, problem, advice, fail=abs(kl[0]) > MAX_FIRST_KL)


def kl_sign(kl: Sequence[float]) -> Finding | None:
    last = kl[len(kl) // 2 :]
    if len(last) < 2:
        return None
    significant = mean(last) + 3 * stdev(last) / math.sqrt(len(last)) < KL_NEGATIVE
    measured = f"{mean(last):+.2f} nats, mean of the second half (at least {KL_NEGATIVE})"
    problem = "persistently negative, which a KL cannot be: the responses are not samples of the policy that is scored"
    advice = "sample from the full distribution: no top-k, top-p, minimum length, dropout or different --temperature"
    return verdict("KL sign", measured, problem, advice, fail=significant)


def kl_size(kl: Sequence[float], max_kl: float) -> Finding | None:
    """`max_kl` is PPO's option; 0 for no limit."""
    if not kl:
        return None
    bound = min(KL_BLOWN_UP, max_kl or math.inf)
    blown_up = kl[-1] > bound
    measured = f"{kl[-1]:.1f} nats per response in the last iteration (at most {bound:g})"
    problem = "KL blow-up, the policy has drifted too far from SFT" if blown_up else "the policy is far from SFT"
    advice = "a higher --kl_coef or a --kl_target, a lower --learning_rate, fewer --updates"
    return verdict("KL", measured, problem, advice, fail=blown_up, warn=kl[-1] > KL_HIGH)


def policy_moved(kl: Sequence[float]) -> Finding | None:
    if len(kl) < 2:
        return None
    furthest = max(abs(each) for each in kl)
    measured = f"largest KL to SFT {furthest:.2g} nats (at least {MIN_KL_REACHED})"
    advice = "a higher --learning_rate, a lower --kl_coef"
    return verdict("policy", measured, "it never moved", advice, fail=furthest < MIN_KL_REACHED)


def kl_controller(kl_coefs: Sequence[float], kl: Sequence[float], kl_target: float) -> Finding | None:
    """Whether the coefficient rose after each iteration with a KL above `kl_target`, and fell after one below it."""
    moves = [after - before for before, after in pairwise(kl_coefs)]
    if kl_target <= 0 or not moves:
        return None
    wrong = sum(move * (each - kl_target) < 0 for move, each in zip(moves, kl, strict=False))
    measured = (
        f"kl_coef {kl_coefs[0]:.2g} -> {kl_coefs[-1]:.2g}, the wrong way after {wrong} of {len(moves)} iterations"
    )
    problem = "the controller goes by something else than the KL of whole responses"
    advice = "give it the KL summed over each response and averaged over responses, in nats, as is --kl_target"
    return verdict("KL controller", measured, problem, advice, fail=wrong > 0)


# --- PPO: other metrics, one value an iteration ----------------------------------------------------------------------


def first_ratio(errors: Sequence[float], precision: str = "no") -> Finding | None:
    """`errors`: |ratio - 1| in the first minibatch of each iteration; `precision` is PPO's option."""
    if not errors:
        return None
    limit = MAX_RATIO_ERROR_BF16 if precision == "bf16" else MAX_RATIO_ERROR
    measured = f"{max(errors):.1g} away from 1 in a first minibatch (at most {limit:g})"
    problem = "the update computes different log-probabilities than the rollout recorded"
    advice = "no dropout (eval mode); the same --temperature, positions and padding in both passes"
    return verdict("ratio", measured, problem, advice, fail=max(errors) > limit)


def sampling(sampled: Sequence[float], expected: Sequence[float]) -> Finding | None:
    """Whether responses are samples of the distribution that is scored.

    Then -log p of the sampled tokens (`sampled`) is on average the entropy of their distributions (`expected`), both in
    nats per token.
    """
    ratios = [one / other for one, other in zip(sampled, expected, strict=False) if other > 0]
    if len(ratios) < 5:
        return None
    off = mean(ratios) - 1
    significant = abs(off) > 3 * stdev(ratios) / math.sqrt(len(ratios))
    measured = f"-log p of the samples is {mean(ratios):.2f} times the entropy (1, at most {MAX_SURPRISE_ERROR} off)"
    problem = f"the tokens are {'more' if off < 0 else 'less'} likely than samples would be"
    advice = "sample from the full distribution: no top-k, top-p, minimum length, dropout or different --temperature"
    return verdict("sampling", measured, problem, advice, fail=abs(off) > MAX_SURPRISE_ERROR and significant)


def clip_fraction(shares: Sequence[float]) -> Finding | None:
    if not shares:
        return None
    measured = f"{max(shares):.0%} of tokens in the worst iteration (at most {MAX_CLIPPED:.0%})"
    advice = "a lower --learning_rate, fewer --num_ppo_epochs"
    return verdict("clipping", measured, "the policy steps are too large", advice, warn=max(shares) > MAX_CLIPPED)


def explained_variance(explained: Sequence[float], stds: Sequence[float]) -> Finding | None:
    """Judges the iterations whose scores (standard deviations `stds`) still differ: the others leave no variance."""
    useful = [each for each, std in zip(explained, stds, strict=False) if std > SCORES_DIFFER * stds[0]]
    last = useful[len(useful) // 2 :]
    if not last:
        return None
    measured = (
        f"explains {median(last):.2f} of the returns' variance, median of the second half (at least {MIN_EXPLAINED})"
    )
    problem = "the value model explains nothing, so the advantages are noise"
    advice = "another --value_learning_rate, more --updates or --warmup_updates"
    return verdict("value model", measured, problem, advice, fail=median(last) < MIN_EXPLAINED)


def entropy(per_token: Sequence[float]) -> Finding | None:
    """`per_token` in nats."""
    if len(per_token) < 2 or per_token[0] <= 0:
        return None
    left = per_token[-1] / per_token[0]
    collapsed = left < ENTROPY_COLLAPSED
    measured = f"{per_token[-1]:.3f} nats per token, {left:.0%} of the first (at least {ENTROPY_COLLAPSED:.0%})"
    problem = "entropy collapse, it always gives the same response" if collapsed else "its responses vary little"
    advice = "a higher --kl_coef, a lower --learning_rate, fewer --updates"
    return verdict("entropy", measured, problem, advice, fail=collapsed, warn=left < ENTROPY_LOW)


def eos_rate(rates: Sequence[float]) -> Finding | None:
    if not rates:
        return None
    rate, never_learned = final(rates), rates[0] < EOS_MISSING
    measured = f"{rate:.0%} of responses end with eos (at least {EOS_MISSING:.0%})"
    problem = "most responses have no eos, they are truncated" if rate < EOS_MISSING else "many responses are truncated"
    advice = "a higher --missing_eos_penalty, a larger --max_new_tokens"
    if never_learned:
        if rate >= EOS_LOW:
            problem = f"PPO had to teach what SFT should have, of whose responses {rates[0]:.0%} end"
        advice = (
            "fix SFT first, its responses do not end either: "
            "demonstrations must end with eos, and the pad token must be a different one"
        )
    return verdict("eos", measured, problem, advice, fail=rate < EOS_MISSING, warn=rate < EOS_LOW or never_learned)


def response_length(lengths: Sequence[float]) -> Finding | None:
    """`lengths` in tokens."""
    if len(lengths) < 2 or lengths[0] <= 0:
        return None
    ratio = final(lengths) / lengths[0]
    bounds = f"{MIN_LENGTH_RATIO:.2f} to {MAX_LENGTH_RATIO} times"
    measured = f"{lengths[0]:.1f} -> {final(lengths):.1f} tokens ({bounds})"
    advice = "read some responses: do longer ones score higher? a higher --kl_coef, another --reward, other rankings"
    return verdict("length", measured, "length drift", advice, fail=not MIN_LENGTH_RATIO <= ratio <= MAX_LENGTH_RATIO)


def score_gain(scores: Sequence[float], stds: Sequence[float]) -> Finding | None:
    """`scores`: mean score of each iteration; `stds`: standard deviations of its scores."""
    if len(scores) < 2 or not stds:
        return None
    if max(stds) < SAME_SCORE:
        advice = "another --reward: one that tells a better response from a worse one"
        return Finding("fail", "score", f"{final(scores):+.2f} for every response: there is nothing to learn", advice)
    first = mean(scores[: math.ceil(len(scores) / 20)])
    gain, least = final(scores) - first, MIN_SCORE_GAIN * stds[0]
    measured = f"{first:+.2f} -> {final(scores):+.2f} (a gain of at least {least:.2f})"
    problem = "it fell" if gain < -least else "it hardly rose"
    advice = "first fix what fails above; then a lower --kl_coef, another --learning_rate, more --updates"
    return verdict("score", measured, problem, advice, fail=gain < -least, warn=gain < least)


# --- PPO: gold -------------------------------------------------------------------------------------------------------


def gold(comparison: Comparison | None, ppo_sha256: str | None, command: str) -> Finding | None:
    """`ppo_sha256`: of the weights in the run now; `command` measures them."""
    if comparison is None or comparison.ppo_sha256 != ppo_sha256:
        why = "compare.json is of another PPO checkpoint" if comparison else "not measured yet"
        return Finding("todo", "gold", f"{why}: {command} shows whether gold rises with the reward")
    gain, scores = comparison.gold_gain, (comparison.sft_score, comparison.ppo_score)
    if gain is None:
        return None
    measured = f"{comparison.sft_gold:.2f} -> {comparison.ppo_gold:.2f}, reward {scores[0]:+.2f} -> {scores[1]:+.2f}"
    hacking = "the reward rises while gold falls, so PPO exploits the reward model"
    problem = hacking if scores[1] > scores[0] else "gold falls"
    advice = "a higher --kl_coef, fewer --updates, an RM trained on more rankings; compare.jsonl has the responses"
    return verdict("gold", measured, problem, advice, fail=gain.high < 0, warn=gain.mean < 0)
