"""What can be wrong with a stage, judged from its figures: pure functions, figures in, a finding out.

Each gives None if there are too few figures to judge by. `python -m rlhf_mini.doctor` collects the figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any, Literal

# The bounds. Behind each: what the default recipe measured for seeds 0, 1 and 2.
OVERFIT_LOSS = 1.3  # SFT's validation loss over its training loss: 0.94 to 1.00
COIN = 0.55  # RM accuracy hardly above a coin's 50 %: 71 to 73 % for the labelers it learned from
ACCURACY_GAP = 0.10  # RM accuracy below the labelers' agreement: 2 to 4 points
OVERFIT_ACCURACY = 0.10  # RM accuracy in training above that in validation: 0 to 2 points
SCORE_SPREAD = 0.1  # standard deviation of the RM's scores: 0.89 to 1.05
SCORE_RISE = 0.25  # rise of PPO's score, in standard deviations of the first scores: 1.8 and more
KL_HIGH, KL_BLOWN_UP = 15.0, 30.0  # nats a response; the recipe aims at 15 at most, and measured 4.6 to 5.3
KL_NEGATIVE = -0.05  # nats; a KL cannot be negative, and its estimate only by chance: 4.9 and more
KL_FIRST = 0.01  # nats in the first update, whose policy is the SFT model itself: 2e-6 at most
KL_STILL = 1e-3  # nats; a policy that never got that far from SFT has not learned: 5.6 and more
ENTROPY_LOW, ENTROPY_COLLAPSED = 0.3, 0.1  # per token, over the first update's: 0.49 to 0.61
EOS_LOW, EOS_GONE = 0.9, 0.5  # share of responses that end by themselves: 0.99 and more
LONGER, SHORTER = 1.5, 1 / 3  # length over the first update's: 0.7 to 0.8
RATIO_ERROR = 1e-3  # of the first minibatch, in any update; only rounding is left: 2e-5 at most
EXPLAINED = 0.1  # variance explained by the values, median of the last half; a constant has 0: 0.72 and more
STILL_DIFFER = 0.1  # scores' standard deviation over the first update's: 0.23 and more
CLIPPED = 0.3  # share of clipped tokens, in any update: 0.02 at most


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    level: Literal["pass", "warn", "fail", "todo"]
    name: str
    text: str
    advice: str = ""


def verdict(name: str, figure: str, problem: str, advice: str, *, fail: bool = False, warn: bool = False) -> Finding:
    """`problem` and `advice` are told only if there is a problem."""
    if not (fail or warn):
        return Finding("pass", name, figure)
    return Finding("fail" if fail else "warn", name, f"{figure}: {problem}", advice)


def end(values: Sequence[float]) -> float:
    """The mean over the last tenth."""
    return mean(values[-math.ceil(len(values) / 10) :])


def numbers(lines: Sequence[dict[str, Any]]) -> Finding:
    missing = sorted({name for line in lines for name, value in line.items() if value is None})
    figure = f"{', '.join(missing)} not finite" if missing else f"finite in all {len(lines)} lines of metrics.jsonl"
    problem = "NaN or infinite, so the weights may be too"
    return verdict("numbers", figure, problem, "a lower --learning_rate", fail=bool(missing))


def learning_rate(rates: Sequence[float]) -> Finding | None:
    if len(rates) < 2:
        return None
    low, high = min(rates), max(rates)
    schedules = "rlhf_mini/training/trainer.py, PPO's in rlhf_mini/training/schedule.py"
    advice = f"--learning_rate is only the peak; its schedule is in {schedules}: what changed there?"
    problem = "the learning rate never moved" + (", so nothing was learned" if high == 0 else "")
    return verdict("learning rate", f"{low:.2g} to {high:.2g}", problem, advice, fail=low == high)


def loss_fell(losses: Sequence[float]) -> Finding | None:
    if len(losses) < 2:
        return None
    advice = "another --learning_rate, more --num_train_epochs, and a look at --demonstrations"
    figure = f"{losses[0]:.2f} -> {losses[-1]:.2f}"
    return verdict("validation loss", figure, "it did not fall", advice, fail=losses[-1] >= losses[0])


def overfitted_loss(training: Sequence[float], validation: Sequence[float]) -> Finding | None:
    if not training or len(validation) < 2:
        return None
    figure = f"validation loss {validation[-1]:.2f}, training loss {end(training):.2f} (at most {OVERFIT_LOSS} times)"
    advice = "fewer --num_train_epochs, some --dropout, or more demonstrations"
    bad = validation[-1] > OVERFIT_LOSS * end(training)
    return verdict("overfitting", figure, "it learns the demonstrations by heart", advice, warn=bad)


def accuracy(of_rm: dict[str, float] | None, labelers: dict[str, float] | None) -> Finding | None:
    """`of_rm` and `labelers`, among themselves, are shares of pairs as the RM stage writes them."""
    if not of_rm or of_rm.get("share") is None:
        return None
    share, low, high = of_rm["share"], of_rm["low"], of_rm["high"]
    figure = f"{share:.0%} of pairs as the labelers order them, 95 % {low:.0%} to {high:.0%} (at least {COIN:.0%})"
    problem = "near 50 %, a coin does as well"
    advice = "another --learning_rate, more --num_prompts; read rankings.jsonl: would you agree with it?"
    if labelers and labelers["share"] is not None and labelers["share"] < COIN:
        advice = f"other --labelers: they agree among themselves on {labelers['share']:.0%}, so nobody can learn them"
    elif high < 0.5:
        problem = "worse than a coin: are the ranks the wrong way round? 1 is the best"
    elif share >= COIN:
        problem, advice = "near 50 % cannot be excluded", "more --num_validation_prompts, or more rankings kept aside"
    return verdict("accuracy", figure, problem, advice, fail=share < COIN, warn=low <= 0.5)


def below_agreement(of_rm: dict[str, float] | None, labelers: dict[str, float] | None) -> Finding | None:
    if not of_rm or not labelers or None in (of_rm["share"], labelers["share"]):
        return None
    gap = labelers["share"] - of_rm["share"]
    figure = f"RM {of_rm['share']:.0%}, labelers {labelers['share']:.0%} (at most {100 * ACCURACY_GAP:.0f} points less)"
    advice = "more --num_prompts or --num_responses, another --learning_rate"
    return verdict("agreement", figure, "it errs much oftener than people disagree", advice, warn=gap > ACCURACY_GAP)


def overfitted_accuracy(training: Sequence[float], of_rm: dict[str, float] | None) -> Finding | None:
    if not training or not of_rm or of_rm.get("share") is None:
        return None
    figure = f"{end(training):.0%} in training, {of_rm['share']:.0%} in validation"
    advice = "fewer --num_train_epochs (1 in the paper), more --num_prompts"
    bad = end(training) - of_rm["share"] > OVERFIT_ACCURACY
    return verdict("overfitting", figure, "it learns the rankings by heart", advice, warn=bad)


def spread(std: float | None) -> Finding | None:
    if std is None:
        return None
    figure = f"standard deviation {std:.2f} (at least {SCORE_SPREAD})"
    advice = "a higher --learning_rate, more --num_prompts"
    return verdict("scores", figure, "all responses score alike", advice, fail=std < SCORE_SPREAD)


def first_kl(kl: Sequence[float]) -> Finding | None:
    if not kl:
        return None
    problem = "the policy is still the SFT model then, so sampling and scoring differ"
    advice = "compare temperature, filters (top-k), dropout and padding of the two in stages/ppo/train.py, collect"
    return verdict("first KL", f"{kl[0]:+.4f} nats (0 but for rounding)", problem, advice, fail=abs(kl[0]) > KL_FIRST)


def negative_kl(kl: Sequence[float]) -> Finding | None:
    last = kl[len(kl) // 2 :]
    if len(last) < 2:
        return None
    surely = mean(last) + 3 * stdev(last) / math.sqrt(len(last)) < KL_NEGATIVE
    figure = f"{mean(last):+.2f} nats, mean of the last half (not below {KL_NEGATIVE})"
    problem = "persistently negative, which no KL is: the responses are not drawn from the policy that is scored"
    advice = "sample from the full distribution: no top-k, top-p, minimum length or other --temperature; no dropout"
    return verdict("sign of KL", figure, problem, advice, fail=surely)


def kl_size(kl: Sequence[float], max_kl: float) -> Finding | None:
    if not kl:
        return None
    bound = min(KL_BLOWN_UP, max_kl or math.inf)
    advice = "a higher --kl_coef or a --kl_target, a lower --learning_rate, fewer --updates"
    figure = f"{kl[-1]:.1f} nats a response in the last update (at most {bound:g})"
    blown_up = kl[-1] > bound
    problem = "KL blow-up, the policy has left the SFT model behind" if blown_up else "rather far from the SFT model"
    return verdict("KL", figure, problem, advice, fail=blown_up, warn=kl[-1] > KL_HIGH)


def moved(kl: Sequence[float]) -> Finding | None:
    if len(kl) < 2:
        return None
    furthest = max(abs(each) for each in kl)
    advice = "a higher --learning_rate, a lower --kl_coef"
    figure = f"{furthest:.2g} nats from the SFT model at most (at least {KL_STILL})"
    return verdict("policy", figure, "it never moved", advice, fail=furthest < KL_STILL)


def entropy_left(entropy: Sequence[float]) -> Finding | None:
    """`entropy` is per token."""
    if len(entropy) < 2 or entropy[0] <= 0:
        return None
    left = entropy[-1] / entropy[0]
    figure = f"{entropy[-1]:.3f} nats a token, {left:.0%} of the first (at least {ENTROPY_COLLAPSED:.0%})"
    advice = "a higher --kl_coef, a lower --learning_rate, fewer --updates"
    problem = "entropy collapse, it says the same every time" if left < ENTROPY_COLLAPSED else "its answers vary little"
    return verdict("entropy", figure, problem, advice, fail=left < ENTROPY_COLLAPSED, warn=left < ENTROPY_LOW)


def eos(rates: Sequence[float]) -> Finding | None:
    if not rates:
        return None
    advice = "a higher --missing_eos_penalty, longer --max_new_tokens"
    if rates[0] < EOS_GONE:
        advice = "mend SFT first, whose responses do not end either: demonstrations end in eos, pad is another token"
    figure = f"{end(rates):.0%} of responses end by themselves (at least {EOS_GONE:.0%})"
    problem = "no eos, they are cut" if end(rates) < EOS_GONE else "many are cut"
    return verdict("eos", figure, problem, advice, fail=end(rates) < EOS_GONE, warn=end(rates) < EOS_LOW)


def length(lengths: Sequence[float]) -> Finding | None:
    if len(lengths) < 2:
        return None
    change = end(lengths) / lengths[0]
    figure = f"{lengths[0]:.1f} -> {end(lengths):.1f} tokens ({SHORTER:.2f} to {LONGER} times)"
    advice = "read responses: does the reward pay for length? a higher --kl_coef, another --reward, other rankings"
    return verdict("length", figure, "length drift", advice, fail=not SHORTER <= change <= LONGER)


def score_rose(scores: Sequence[float], stds: Sequence[float]) -> Finding | None:
    if len(scores) < 2 or not stds:
        return None
    rise, least = end(scores) - scores[0], SCORE_RISE * stds[0]
    advice = "a lower --kl_coef, another --learning_rate, more --updates; first mend whatever fails above"
    problem = "it fell" if rise < -least else "it hardly rose"
    figure = f"{scores[0]:+.2f} -> {end(scores):+.2f} (up by {least:.2f} at least)"
    return verdict("score", figure, problem, advice, fail=rise < -least, warn=rise < least)


def ratio(errors: Sequence[float]) -> Finding | None:
    if not errors:
        return None
    figure = f"{max(errors):.1g} away from 1 in a first minibatch (at most {RATIO_ERROR:g})"
    problem = "the update scores other log-probabilities than the rollout kept"
    advice = "no dropout (eval mode), the same --temperature, positions and padding in both passes"
    return verdict("ratio", figure, problem, advice, fail=max(errors) > RATIO_ERROR)


def explained_variance(explained: Sequence[float], stds: Sequence[float]) -> Finding | None:
    """Of the updates whose scores (standard deviations `stds`) still differ; the others leave nothing to explain."""
    there = [each for each, std in zip(explained, stds, strict=False) if std > STILL_DIFFER * stds[0]]
    last = there[len(there) // 2 :]
    if not last:
        return None
    figure = f"{median(last):.2f} of the variance of the returns, median of the last half (at least {EXPLAINED})"
    problem = "the value model explains nothing, so the advantages are noise"
    advice = "another --value_learning_rate, more --updates or --warmup_updates"
    return verdict("value model", figure, problem, advice, fail=median(last) < EXPLAINED)


def clipped(shares: Sequence[float]) -> Finding | None:
    if not shares:
        return None
    figure = f"{max(shares):.0%} of tokens in the worst update (at most {CLIPPED:.0%})"
    advice = "a lower --learning_rate, fewer --num_ppo_epochs"
    return verdict("clipping", figure, "the steps are too big", advice, warn=max(shares) > CLIPPED)


def gold(summary: dict[str, Any], ppo_sha256: str | None, compare: str) -> Finding | None:
    """`summary` is compare.json; `compare` is the command that writes it."""
    compared = summary.get("provenance", {}).get("checkpoints", {}).get("ppo", {}).get("sha256")
    if compared is None or compared != ppo_sha256:
        what = "compare.json is of another PPO checkpoint" if compared else "not measured yet"
        return Finding("todo", "gold", f"{what}: {compare} tells whether it rises with the reward")
    sft, ppo = (summary["groups"]["all"]["stages"][name] for name in ("sft", "ppo"))
    change = ppo["gold_minus_sft"]
    if change["mean"] is None:  # prompts without a check
        return None
    scores = sft["rm_score"]["mean"], ppo["rm_score"]["mean"]
    figure = f"{sft['gold']['mean']:.2f} -> {ppo['gold']['mean']:.2f}, reward {scores[0]:+.2f} -> {scores[1]:+.2f}"
    rising = scores[1] > scores[0]
    problem = "the reward rises while gold falls, PPO exploits the reward model" if rising else "gold falls"
    advice = "a higher --kl_coef, fewer --updates, an RM of more rankings; compare.jsonl shows where the two disagree"
    return verdict("gold", figure, problem, advice, fail=change["high"] < 0, warn=change["mean"] < 0)
