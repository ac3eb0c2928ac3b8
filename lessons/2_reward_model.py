# %% [markdown] id="title"
# # The reward model: does a model of taste generalise?
#
# **The question.** Labelers rank a few thousand responses. Can a model learn from these what people prefer, so well that
# it holds for new prompts and for people who ranked nothing?
#
# In lesson 1, SFT imitated demonstrations, good and careless ones alike. PPO in lesson 3 needs a number that says which
# of two responses is better. In between stands the **reward model**. It is an ordinary supervised model, so all that you
# know about generalisation applies: training and validation error, bias and variance, regularisation,
# cross-validation. Here you measure each of them.
#
# The paper is InstructGPT ([Ouyang et al. 2022](https://arxiv.org/abs/2203.02155), section 3.5 and appendix C.2).

# %% id="setup"
from functools import partial

import torch
from transformers import AutoModelForSequenceClassification

from rlhf_mini.classroom.checks.lesson2 import check_larger, check_leaks, check_loss
from rlhf_mini.classroom.lesson import Lesson
from rlhf_mini.classroom.reward import as_pairs, difference, errors, fit, fit_all, new_model, pool, scores_of, share
from rlhf_mini.classroom.show import axes, table
from rlhf_mini.core.examples import read_rankings
from rlhf_mini.core.rankings import agreement
from rlhf_mini.models.text import load_tokenizer
from rlhf_mini.world.labelers import gold_labeler, heldout_labelers, training_labelers
from stages.rm.agreement import accuracy_on_all, rank_with_all
from stages.rm.rankings import as_responses, encode, split_by_prompt

lesson = Lesson(2)

# %% [markdown] id="rankings-text"
# ## 1. Rankings, and the people who disagree about them
#
# For each prompt of `data/prompts/rm.jsonl`, the run's reward model got up to six responses, ranked by one of five
# labelers. Rank 1 is the best, equal ranks are a tie. We put an eighth of the *prompts* aside for validation: no model of
# this lesson trains on them.
#
# The labelers of this mini world are programs, so we can ask all five about the same responses, and three more who
# ranked nothing in training. Each of them weighs truth, harm, the task and manners a little differently, overlooks
# things and errs.

# %% id="rankings"
sft = lesson.checkpoint("sft").path
rankings = read_rankings(lesson.run_dir / "rm" / "rankings.jsonl")
of_training, of_validation = split_by_prompt(rankings, 0.125, lesson.seed)

people = {"training": training_labelers(), "held-out": heldout_labelers(), "gold": gold_labeler()}
ranks = {  # of the validation prompts: by each labeler of the group, for each response
    group: [rank_with_all(labelers, each, as_responses(each)) for each in of_validation]
    for group, labelers in people.items()
}

example = of_validation[0]
print(f"user: {example['prompt'][-1]['content']}")
by = {labeler.name: order for labeler, order in zip(people["training"], ranks["training"][0], strict=True)}
table({"response": [text[:60] for text in example["responses"]], **by})

# %% id="agreement"
among = share([agreement(one) for one in ranks["training"]])
across = share([agreement(one, other) for one, other in zip(ranks["training"], ranks["held-out"], strict=True)])
knows = share(
    [
        accuracy_on_all([-rank for rank in gold[0]], order)
        for gold, order in zip(ranks["gold"], ranks["training"], strict=True)
    ]
)
floor = 1 - knows.mean
table(
    {
        "who": ["training labelers, two by two", "a training and a held-out labeler", "gold and a training labeler"],
        "same order of a pair": [among, across, knows],
    }
)
lesson.record(agreement=among.mean, floor=floor)

# %% [markdown] id="agreement-look"
# **What to look for.** Two people do not order all pairs alike. InstructGPT's training labelers agreed in 72.6 ± 1.5 % of
# the cases, its held-out labelers among themselves in 77.3 ± 1.3 % (Ouyang et al. 2022, section 3.4). *Gold* is a program
# that knows the true quality of each response, and even gold disagrees with the labelers now and then, because they err.
# Statistics calls this part the noise, or the irreducible error. We use gold's as the **floor**: a reward model cannot
# be expected to get much below it. (A little below is possible: it may learn a taste that its labelers share and gold
# lacks.)
#
# These responses come from several sources, and often one of them answers another question. Samples of one model are
# harder to tell apart: in lesson 5, the same labelers agree less on those.
#
# ## 2. From ranks to a loss
#
# The reward model gives each response a score $r$. Bradley and Terry's model (1952) turns two scores into the probability
# that a labeler prefers the first:
#
# $$P(y_1 \succ y_2) = \sigma(r_1 - r_2) = \frac{1}{1 + e^{-(r_1 - r_2)}}$$
#
# Only the difference counts: add the same number to all scores, and no probability changes. So the loss leaves the zero
# of the scale open, and the stage puts it where the demonstrations have a mean score of 0, as InstructGPT did.

# %% [markdown] id="exercise-loss-text"
# A ranking of K responses has $\binom{K}{2}$ pairs. The loss of one prompt is the negative log-probability of those that
# are ordered (a winner $w$ over a loser $l$), divided by the number of all its pairs (Ouyang et al. 2022, equation 1):
#
# $$\mathrm{loss} = -\frac{1}{\binom{K}{2}} \sum_{(w, l)} \log \sigma(r_w - r_l)$$
#
# A tied pair orders nothing: it is left out of the sum, but still counts in $\binom{K}{2}$.
#
# ### Exercise 1: the loss of a ranking with a tie (●●○, 6 minutes)
#
# Three responses A, B and C have the scores 0, 1 and -2. The labeler put A first, and tied B and C. What is the loss?
#
# <details><summary>Hint</summary>
#
# The ordered pairs are A over B and A over C. With $-\log \sigma(x) = \log(1 + e^{-x})$, a calculator gives both terms.
# How many pairs are there, with the tied one?
#
# </details>

# %% id="exercise-loss" tags=["exercise"]
loss = ...

# %% id="check-loss" tags=["check"]
check_loss(loss)

# %% [markdown] id="guess-pairs-text"
# ## 3. All pairs of a prompt together, or shuffled?
#
# Six responses have fifteen pairs. Why not put all comparisons of all prompts into one data set, shuffle it, and take
# batches of pairs, as in any other classification? Section 3.5 of InstructGPT says what happened: one epoch was enough to
# overfit. So all comparisons of a prompt became *one* element of a batch, which also needs only K scores instead of two
# for each comparison.
#
# We fit a small reward model both ways to the same rankings: the first blocks of the SFT model with a scalar head in
# place of the vocabulary. To keep things clear, the second part of the project's score, the likelihood of a response
# under SFT, is switched off in this lesson.
#
# **Predict first.** How many times longer does an epoch of shuffled pairs take? Which of the two has the lower training
# error after it, and which the lower validation *loss*?

# %% id="guess-pairs" tags=["guess"]
guess = ""

# %% id="pairs"
lesson.predict(guess)
blocks = lesson.size(full=2, nano=1)
tokenizer = load_tokenizer(sft)
training = encode(new_model(sft, lesson.seed), tokenizer, of_training)
validation = encode(new_model(sft, lesson.seed), tokenizer, of_validation)


def fitted(examples, blocks=blocks, **options):
    """A reward model of the first blocks of SFT, fitted to examples."""
    model = new_model(sft, lesson.seed, blocks)
    return fit(model, examples, validation, seed=lesson.seed, **options)


some = training[: lesson.size(full=320, nano=32)]
ways = {
    "K-wise, an epoch": fitted(some),
    "shuffled pairs, an epoch": fitted(as_pairs(some), batch_size=64),
    "K-wise, five epochs": fitted(some, steps=5 * len(some) // 16),
}

# %% id="answer-pairs" tags=["answer"]
table(
    {
        "way": list(ways),
        "seconds": [f"{one.seconds:.1f}" for one in ways.values()],
        "responses scored": [one.scored for one in ways.values()],
        "training error": [errors(one.model, some[:200]).error for one in ways.values()],
        "validation error": [one.validation.error for one in ways.values()],
        "validation loss": [one.validation.loss for one in ways.values()],
    }
)

# %% [markdown] id="pairs-look"
# **What to look for.** Compare the seconds and the responses scored first. Then compare the gap between training and
# validation error of the two single epochs. In an epoch of shuffled pairs, each response comes up in several steps, once
# for each of its comparisons, so the model sees it as often as in several epochs of the K-wise loss. The third row spends
# about as much computing on the K-wise loss: is what you see due to the pairs, or to seeing each response five times?
#
# ## 4. Overfitting: what rises, and what does not
#
# Now we go on for more epochs, on fewer rankings, and measure the error (share of pairs in the wrong order) and the loss
# on the way, on the training rankings and on the validation prompts.
#
# **Predict first.** Sketch the four curves. Which of them has a minimum?

# %% id="guess-epochs" tags=["guess"]
guess = ""

# %% id="answer-epochs" tags=["answer"] alt="Error and loss by epoch: in training both fall, in validation the loss rises."
lesson.predict(guess)
long = fitted(training[: lesson.size(full=160, nano=32)], steps=lesson.size(full=100, nano=6), measure=5)
epochs = [point.epochs for point in long.points]
both = axes("epoch", "", panels=2)
for panel, what in zip(both, ("error", "loss"), strict=True):
    for part in ("training", "validation"):
        panel.plot(epochs, [getattr(getattr(point, part), what) for point in long.points], marker="o", label=part)
    panel.set_title(what)
both[0].axhline(floor, color="grey", linestyle=":", label="floor")
both[0].legend()
lesson.record(loss_rise=long.validation.loss - long.points[0].validation.loss)

# %% [markdown] id="epochs-look"
# **What to look for.** Follow the gap between the two errors, and then the validation loss. An overfitted model need not
# order many more pairs wrongly: it becomes *sure* of what it says, and the loss punishes a wrong order the more, the surer
# it was. A score that is too sure is what PPO would follow. So reward models are trained for one epoch (InstructGPT,
# appendix C.2). Lesson 1 looks at the same in SFT.
#
# ## 5. Bias and variance
#
# The validation error has three parts:
#
# - the **noise**, which is the floor;
# - the **bias**, training error minus floor: what the model cannot even fit;
# - the **variance**, validation error minus training error: what it fits, but what does not hold for other prompts.
#
# (This is how practitioners read the two errors. The textbook defines bias and variance over many training sets.)
#
# First the curve over the size of the training set. Every model makes the same number of steps, so all cost the same.
#
# **Predict first.** With more rankings, does the *training* error rise or fall? Do the two curves meet, and where?

# %% id="guess-size" tags=["guess"]
guess = ""

# %% id="sizes"
lesson.predict(guess)
sizes = lesson.size(full=[40, 160, 480, 1280], nano=[16, 64])
steps = lesson.size(full=80, nano=4)
of_size = fit_all({size: partial(fitted, training[:size], steps=steps) for size in sizes})
judge = AutoModelForSequenceClassification.from_pretrained("data/judge")
untrained = errors(judge, validation).error

# %% id="answer-size" tags=["answer"] alt="Learning curve: with more rankings the training error rises, the validation error falls."
plot = axes("rankings to train on", "error")
for part in ("training", "validation"):
    plot.plot(sizes, [getattr(one, part).error for one in of_size.values()], marker="o", label=part)
plot.axhline(untrained, color="black", linestyle="--", label="validation: the judge, not yet trained here")
plot.axhline(floor, color="grey", linestyle=":", label="floor")
plot.set_xscale("log")
plot.legend()
lesson.record(
    few_gap=of_size[sizes[0]].validation.error - of_size[sizes[0]].training.error,
    many_gap=of_size[sizes[-1]].validation.error - of_size[sizes[-1]].training.error,
    many_error=of_size[sizes[-1]].validation.error,
    judge_error=untrained,
)

# %% [markdown] id="size-look"
# **What to look for.** A small set is learned by heart; a large one is not, so the training error rises while the
# validation error falls. Where the curves come close to each other but stay above the floor, more rankings of the same
# kind will hardly help. Now look at the dashed line: the *judge* of `data/judge` has read the votes of a web forum before
# it saw any ranking of this run, and the run's own reward model starts from it. A start that already knows how to compare
# responses lowers bias *and* variance. InstructGPT's reward model, too, started from a model
# that had been fine-tuned on other data before (appendix C.2).
#
# Next, the classic knobs at one training-set size: capacity (how many blocks of the SFT model are kept) and weight decay.

# %% id="capacity"
size = lesson.size(full=480, nano=64)
base = of_size[size]
knobs = {
    "1 block": partial(fitted, training[:size], steps=steps, blocks=1),
    "all blocks": partial(fitted, training[:size], steps=steps, blocks=0),
    "weight decay": partial(fitted, training[:size], steps=steps, weight_decay=10.0),
}
settings = {"fewest rankings": of_size[sizes[0]], "most rankings": of_size[sizes[-1]]} | fit_all(knobs)
table(
    {
        "setting": [f"{size} rankings, {blocks} blocks", *settings],
        "training error": [one.training.error for one in (base, *settings.values())],
        "validation error": [one.validation.error for one in (base, *settings.values())],
        "floor": [floor] * (1 + len(settings)),
    },
    digits=3,
)

# %% [markdown] id="exercise-larger-text"
# **What to look for.** Compare each row with the first one. Capacity and weight decay move the training error more easily
# than the validation error: that is the trade between bias and variance.
#
# ### Exercise 2: bias or variance? (●●○, 5 minutes)
#
# For each setting of the table: which of the two parts of the validation error above the floor is the larger one? Write
# `"bias"` or `"variance"`.
#
# <details><summary>Hint</summary>
#
# Two subtractions for each row: training error minus floor, and validation error minus training error.
#
# </details>

# %% id="exercise-larger" tags=["exercise"]
larger = {
    "fewest rankings": ...,
    "most rankings": ...,
    "1 block": ...,
    "all blocks": ...,
    "weight decay": ...,
}

# %% id="check-larger" tags=["check"]
check_larger(larger, settings, floor)

# %% [markdown] id="exercise-leaks-text"
# ## 6. New prompts, new people
#
# All of this depends on an honest split. A validation error is honest if validation asks what training has not answered.
#
# ### Exercise 3: which split leaks? (●●○, 4 minutes)
#
# Here are four ways to choose what is put aside for validation. Write `True` where a prompt can have comparisons on both
# sides, so that the validation error says too little about *new* prompts.
#
# <details><summary>Hint</summary>
#
# If A beats B and B beats C in training, is it hard to guess who wins, A or C?
#
# </details>

# %% id="exercise-leaks" tags=["exercise"]
leaks = {
    "a tenth of the comparisons, at random": ...,
    "all comparisons of a tenth of the prompts": ...,
    "all rankings by one labeler, where every labeler ranked every prompt": ...,
    "all rankings by one labeler, where every prompt was ranked by one labeler": ...,
}

# %% id="check-leaks" tags=["check"]
check_leaks(leaks)

# %% [markdown] id="leak-text"
# How much does the first of these splits hide? We put a tenth of the comparisons aside at random, train on the others,
# and measure one model on both: the comparisons put aside, and other prompts.

# %% id="leak"
shuffled = as_pairs(training[: lesson.size(full=100, nano=16)])
order = torch.randperm(len(shuffled), generator=torch.Generator().manual_seed(lesson.seed)).tolist()
aside, kept = ([shuffled[index] for index in part] for part in (order[: len(order) // 10], order[len(order) // 10 :]))
leaked = fitted(kept, batch_size=64, steps=lesson.size(full=60, nano=4))
leaky = errors(leaked.model, aside).error
table(
    {
        "error on": [
            "comparisons it trained on",
            "other comparisons of the same prompts",
            "comparisons of other prompts",
        ],
        "": [leaked.training.error, leaky, leaked.validation.error],
    }
)
lesson.record(leak=leaked.validation.error - leaky)

# %% [markdown] id="guess-labelers-text"
# **What to look for.** Which of the other two does the middle row resemble? Somebody who saw only the first two rows would
# believe that this reward model generalises.
#
# Prompts are one thing to generalise over, people another. A reward model that holds only for the people it was trained
# on would be of little use. InstructGPT therefore cross-validated over *labelers*: five groups, five reward models, each
# trained without one group. They predicted the preferences of their own groups in 72.4 ± 0.4 % of the cases, those of the
# left-out group in 69.6 ± 0.9 % (Ouyang et al. 2022, section 4.1).
#
# We do the same with the five labelers: five folds, each leaves one of them out, and each model is judged on the
# *validation* prompts, which all labelers have ranked. So prompts are new for everybody, and only the people differ. All
# five start from the judge, as the run's reward model does.
#
# **Predict first.** How many points lower is the accuracy on the labeler who was left out? And on the three held-out
# labelers?

# %% id="guess-labelers" tags=["guess"]
guess = ""

# %% id="folds"
lesson.predict(guess)
names = [labeler.name for labeler in people["training"]]
number = lesson.size(full=480, nano=32)  # rankings to train on


def fold(left_out):
    """A reward model that starts from the judge and sees no ranking by `left_out`."""
    others = [one for one, ranking in zip(training, of_training, strict=True) if ranking["labeler"] != left_out]
    model = AutoModelForSequenceClassification.from_pretrained("data/judge")
    return fit(model, others[:number], validation, seed=lesson.seed, learning_rate=3e-4, sample=32)


folds = fit_all({name: partial(fold, name) for name in names})

# %% id="answer-labelers" tags=["answer"]
counts = {"in the group": [], "left out": [], "held out": []}  # for each fold, a Count for each prompt
for index, name in enumerate(names):
    scores = scores_of(folds[name].model, validation)
    others = [one[:index] + one[index + 1 :] for one in ranks["training"]]
    left_out = [[one[index]] for one in ranks["training"]]
    for kind, asked in zip(counts, (others, left_out, ranks["held-out"]), strict=True):
        counts[kind].append(list(map(accuracy_on_all, scores, asked)))
pooled = {kind: pool(of_folds) for kind, of_folds in counts.items()}
before = scores_of(judge, validation)  # what all five started from: it has seen no ranking by any of them
asked = {"in the group": ranks["training"], "left out": ranks["training"], "held out": ranks["held-out"]}
table(
    {"left out": [*names, "all five", "the judge, before"]}
    | {
        f"accuracy, {kind}": [
            *map(share, counts[kind]), share(pooled[kind]), share(list(map(accuracy_on_all, before, asked[kind])))
        ]
        for kind in counts
    }
)  # fmt: skip
drop = difference(pooled["in the group"], pooled["left out"])
table({"": ["accuracy in the group minus left out"], "difference": [drop]}, digits=3)
lesson.record(in_group=share(pooled["in the group"]).mean, left_out_drop=drop.mean)

# %% [markdown] id="labelers-look"
# **What to look for.** The second table has the paired difference with its interval: does the interval contain 0? Compare the
# single rows, too: a labeler who is hard to predict when left out may also be hard to predict for a model that was trained
# on them. And compare the accuracies with the agreement of section 1: a reward model cannot be expected to agree with
# people much more often than they agree among themselves.
#
# The last row is a warning. The judge that all five started from has seen no ranking by anybody here. If it is as accurate
# as they are, they have learned little from their labelers, and that they do not lose anything on the one left out is no
# proof that what labelers teach holds for others.
#
# Our labelers are more alike than people: all of them weigh the same few qualities, a little differently. What happens if
# they really disagree is the question of lesson 5.

# %% [markdown] id="quiz"
# ## Quiz
#
# **1. K = 9 responses to a prompt, no ties. How many scores does the K-wise loss need, and how many do single pairs?**
#
# <details><summary>9 and 9.</summary>No. A data set of single pairs does not know that two of its pairs share a response:
# it computes the score again for each.</details>
# <details><summary>9 and 72.</summary>Right: 36 comparisons with two scores each. And each response is in eight of
# them, so it would pull the weights in eight different steps.</details>
# <details><summary>36 and 36.</summary>No. There are 36 comparisons, but a comparison is a difference of two of the nine
# scores.</details>
#
# **2. Training error and validation error are nearly equal, and both far above the floor. What helps?**
#
# <details><summary>More rankings of the same kind.</summary>No. They would close a gap between the two errors, and there is
# none.</details>
# <details><summary>More weight decay.</summary>No. It keeps the model from fitting, and it fits too little already.</details>
# <details><summary>A model that starts with more knowledge, or can read more.</summary>Right: this is bias. Here, the judge
# was such a start.</details>
#
# **3. A reward model agrees with labelers in 73 % of the pairs. They agree among themselves in 73 %. Is it perfect?**
#
# <details><summary>Yes, nothing better can be measured.</summary>No. Two labelers who both err disagree more often than one of
# them does with the truth. Compare gold with their agreement in the table of section 1.</details>
# <details><summary>No, labelers err in different places than it does.</summary>Right. It could err on just the pairs that
# matter, such as facts, and agree on the many easy ones. `make evaluate` therefore compares it on pairs with equal manners,
# too.</details>
# <details><summary>No, it should reach 100 %.</summary>No. Labels contain errors, so 100 % on them would mean that it has
# learned the errors by heart.</details>
#
# ## Pitfalls
#
# - Splitting by comparison or by response instead of by prompt: the validation error then measures memory.
# - Repeating a prompt under another id: split by the text of the prompt, as `split_by_prompt` does.
# - Watching accuracy only. The loss shows that a model becomes too sure long before its accuracy falls.
# - Comparing scores of different prompts. The loss only ever compared responses to the same one.
# - Counting pairs as independent: the pairs of a prompt rise and fall together. Intervals here draw whole prompts.
#
# ## What is simplified
#
# - InstructGPT's reward model had six billion parameters, 33,000 prompts and four to nine responses to each (Ouyang et al.
#   2022, sections 3.2 and 3.5). Ours have less than a million parameters and at most 2,100 prompts.
# - Its labelers were about forty people in five groups; ours are five programs whose tastes differ little.
# - The likelihood part of the score is off in this lesson. In the run it is on, and it is what knows facts:
#   [docs/reward.md](../docs/reward.md).
# - Validation here is a part of `rm.jsonl`. `make rm` measures on the prompts of `validation.jsonl`, on fresh samples of SFT
#   alone, which are harder to tell apart.
# - One seed for each curve: with another draw of rankings, small training sets give other errors.

# %% id="finish"
lesson.finish()
