# %% [markdown] id="title"
# # Whose preferences?
#
# **The question.** "Human preferences" have owners. Who decided what the reward model likes? And if somebody else had
# ranked, you for example, how different would the model be?
#
# InstructGPT's authors ask this themselves, in a section called "Who are we aligning to?"
# ([Ouyang et al. 2022](https://arxiv.org/abs/2203.02155), section 5.2): to about 40 labelers, to the researchers who wrote
# their instructions, and to customers of an API who wrote the prompts. In this lesson you see labelers disagree, replace
# them by others, or by yourself, and watch the policy follow.

# %% id="setup"
import numpy as np

from rlhf_mini.classroom.checks.lesson5 import check_agreement, check_half_width, check_ranks
from rlhf_mini.classroom.lesson import Lesson
from rlhf_mini.classroom.measure import measure_policies
from rlhf_mini.classroom.personas import as_rankings, brief, courteous_share, polite, quietly, ranked_by
from rlhf_mini.classroom.show import axes, table
from rlhf_mini.core.bootstrap import mean_intervals
from rlhf_mini.core.console import console, printable
from rlhf_mini.core.examples import read_prompts, read_rankings
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.rankings import Count, agreement, pairs
from rlhf_mini.models.scoring import load_reward_model
from rlhf_mini.world.labelers import gold_labeler, heldout_labelers, training_labelers
from stages.rm.agreement import rankings_evaluation
from stages.rm.options import RMOptions
from stages.rm.sources import distinct, sample_groups

lesson = Lesson(5)
sft = lesson.load("sft")

# %% [markdown] id="labelers-text"
# ## 1. Labelers who disagree
#
# Eight simulated labelers rank the same responses: four samples of SFT for each prompt of the validation split. The first
# five ranked for this run's reward model, the other three did not. All follow the same instructions. But each of them
# weighs truth, harm and tone in a way of their own, overlooks things, and makes mistakes
# ([labelers.yaml](../data/knowledge/labelers.yaml)).
#
# *Agreement* is counted in pairs of responses: of the pairs that neither labeler ties, how many do both put in the same
# order?

# %% [markdown] id="exercise-agreement-text"
# ### Exercise 1: do they agree? (●○○, 6 minutes)
#
# Two labelers rank the same responses; rank 1 is the best, and equal ranks are a tie. Count the pairs that both put in the
# same order, and the pairs that count at all.
#
# <details><summary>Hint</summary>
#
# For a pair `(i, j)`, look at the sign of `(a[i] - a[j]) * (b[i] - b[j])`: positive if both see the same order, zero if
# one of them ties. `itertools.combinations(range(len(a)), 2)` gives all pairs.
#
# </details>


# %% id="exercise-agreement" tags=["exercise"]
def agreeing_pairs(a: list[int], b: list[int]) -> tuple[int, int]:
    """(pairs in the same order, pairs that neither of the two ties)"""
    return ...


# %% id="check-agreement" tags=["check"]
check_agreement(agreeing_pairs)

# %% [markdown] id="guess-labelers-text"
# **Predict first.** How often do two labelers agree on a pair? Chance is one half. And do the labelers of the training
# group agree more with each other than with the others?

# %% id="guess-labelers" tags=["guess"]
guess = ""

# %% id="answer-labelers" tags=["answer"] alt="A matrix of the agreement of every labeler with every other one."
lesson.predict(guess)
examples = read_prompts("data/prompts/validation.jsonl")[: lesson.size(full=240, nano=24)]
sampled = sample_groups(
    sft.model, sft.tokenizer, sft.encode([example["prompt"] for example in examples]), 4, RMOptions(), lesson.seed,
    0.7, "sampling",
)  # fmt: skip
groups = [distinct(group) for group in sampled]  # two equal responses cannot be ranked
labelers = [*training_labelers(), *heldout_labelers()]
ranks = {
    labeler.name: [labeler.rank(example, group) for example, group in zip(examples, groups, strict=True)]
    for labeler in labelers
}


def agreement_of(first: list[list[int]], second: list[list[int]]) -> Count:
    """Of two labelers' rankings of the same groups."""
    return sum((agreement([a], [b]) for a, b in zip(first, second, strict=True)), Count(0, 0))


names = list(ranks)
matrix = np.array([[agreement_of(ranks[one], ranks[other]).share for other in names] for one in names])
np.fill_diagonal(matrix, np.nan)  # with oneself
plot = axes("", "")
plot.grid(False)
image = plot.imshow(matrix, cmap="viridis", vmin=0.5, vmax=1)
plot.set_xticks(range(len(names)), names, rotation=45)
plot.set_yticks(range(len(names)), names)
plot.figure.colorbar(image, label="agreement on pairs")
for row, column in zip(*np.nonzero(~np.isnan(matrix)), strict=True):
    plot.text(column, row, f"{matrix[row, column]:.2f}", ha="center", va="center", color="white", fontsize=8)
mean_agreement = float(np.nanmean(matrix))
console.print(f"Two labelers agree on {mean_agreement:.0%} of the pairs, on average.")
lesson.record(labelers_agree=mean_agreement)

# %% [markdown] id="labelers-look"
# **What to look for.** No pair of labelers agrees always, and nobody is much nearer to their own group. InstructGPT's
# training labelers agreed with each other on 72.6 % of the pairs (Ouyang et al. 2022, section 3.4); the noise of the labelers
# here was chosen to match. Such a figure says what to expect: a reward model that copies one labeler exactly agrees with
# another one no more than the two agree. One that learns what all of them share can do a little better, because it
# leaves out each one's slips.
#
# Which responses split them? The next cell looks for the pairs on which the eight are divided most evenly.

# %% id="split"
divided = []
for index, group in enumerate(groups):
    for first in range(len(group)):
        for second in range(first + 1, len(group)):
            first_wins = [name for name in names if ranks[name][index][first] < ranks[name][index][second]]
            second_wins = [name for name in names if ranks[name][index][first] > ranks[name][index][second]]
            divided.append((min(len(first_wins), len(second_wins)), index, first, second, first_wins, second_wins))
divided.sort(key=lambda one: (-one[0], one[1]))
unanimous = sum(min(len(a), len(b)) == 0 and len(a) + len(b) == len(names) for *_, a, b in divided)
console.print(f"{len(divided)} pairs; all eight agree on {unanimous}, they are divided 3 to 3 or more evenly on "
              f"{sum(one[0] >= 3 for one in divided)}.")  # fmt: skip
shown: set[int] = set()
for _, index, first, second, first_wins, second_wins in divided:
    if index not in shown and len(shown) < 3:
        shown.add(index)
        console.print(f"user: {printable(examples[index]['prompt'][-1]['content'])}")
        for response, voters in ((groups[index][first], first_wins), (groups[index][second], second_wins)):
            console.print(f"    {printable(response.text)}\n        preferred by {', '.join(voters)}")

# %% [markdown] id="split-look"
# **What to look for.** Read the pairs. In some of them both responses fail, and the labelers guess. In others, each has a
# fault of its own kind, and the question is which fault weighs more. There is no right answer to that: it is a matter of
# values. A reward model that is trained on all of them learns a mean, which may be nobody's preference.
#
# ## 2. Two personas
#
# So let us take people whose values we know. Both want good answers, and beside that,
#
# - **polite** likes courtesy ("Happy to help!"),
# - **brief** likes few words.
#
# A persona's `quality` is half the gold score and half its taste
# ([personas.py](../rlhf_mini/classroom/personas.py)). To get rankings out of qualities, one more function is needed.

# %% [markdown] id="exercise-ranks-text"
# ### Exercise 2: from qualities to ranks (●○○, 4 minutes)
#
# Turn a list of qualities into ranks: 1 for the best, equal ranks for equal qualities. After two that share rank 1 comes
# rank 3.
#
# <details><summary>Hint</summary>
#
# The rank of a response is 1 plus the number of responses that are better.
#
# </details>


# %% id="exercise-ranks" tags=["exercise"]
def ranks_of(qualities: list[float]) -> list[int]:
    """The rank of each response, in the order of `qualities`."""
    return ...


# %% id="check-ranks" tags=["check"]
check_ranks(ranks_of)

# %% id="personas"
judges = {"polite": polite()[0], "brief": brief()[0], "gold": gold_labeler()[0]}
heldout = {
    name: [ranking for ranking in as_rankings(judge, examples, groups) if pairs(ranking["ranks"])]
    for name, judge in judges.items()
}
ranks |= {
    name: [judge.rank(e, group) for e, group in zip(examples, groups, strict=True)] for name, judge in judges.items()
}
table(
    {"agreement of": list(judges)}
    | {f"with {other}": [agreement_of(ranks[name], ranks[other]).share for name in judges] for other in judges}
    | {
        "with the labelers": [
            np.mean([agreement_of(ranks[name], ranks[one]).share for one in names]) for name in judges
        ]
    }
)
index = max(
    range(len(groups)), key=lambda i: sum(a != b for a, b in zip(ranks["polite"][i], ranks["brief"][i], strict=True))
)
console.print(f"user: {printable(examples[index]['prompt'][-1]['content'])}")
table({"response": [one.text for one in groups[index]]} | {f"rank by {name}": ranks[name][index] for name in judges})

# %% [markdown] id="personas-look"
# **What to look for.** Both personas agree with gold more than with each other: gold is the half that they share. A single
# number such as "agrees with people in three of four pairs" does not tell you with *which* people.
#
# ## 3. How many rankings until the reward model follows?
#
# The personas now rank the responses on which this run's reward model was trained, instead of the labelers who did. Each
# curve point is a reward model, trained on the first n of polite's rankings, from the same start (`data/judge`). It is
# measured on rankings of *validation* prompts, which trained nothing. The line at 0 rankings is this run's own reward
# model: it has seen 2,400 rankings, but by other people.
#
# **Predict first.** How many rankings will it take until the new reward model follows polite better than the run's own
# one does: 10, 30, 100, 300? You could rank 10 in a few minutes.

# %% id="guess-curve" tags=["guess"]
guess = ""

# %% id="curve"
lesson.predict(guess)
by_labelers = read_rankings(lesson.run_dir / "rm" / "rankings.jsonl")
lesson.folder.mkdir(parents=True, exist_ok=True)
files = {}
for name in ("polite", "brief"):
    files[name] = lesson.folder / f"{name}.jsonl"
    write_jsonl(files[name], ranked_by(judges[name], by_labelers))


def reward_model_of(person: str, number: int):
    """Trains a reward model on a person's first rankings, if there are so many."""
    path = lesson.folder / f"{person}-{number}.jsonl"
    write_jsonl(path, read_rankings(files[person])[:number])
    with quietly():
        return lesson.train(
            "rm", f"{person}-{number}", rankings=str(path), batch_size=4, heldout_share=0.01, num_validation_prompts=4,
            normalization_size=100, content="", save_steps=0,
        )  # fmt: skip


def accuracy_on(rm, rankings) -> dict:
    return rankings_evaluation(load_reward_model(rm), sft.tokenizer, rankings)["accuracy/rankings"]


sizes = lesson.size(full=[10, 30, 100, 300], nano=[10, 40])
found = {0: accuracy_on(lesson.run_dir / "rm", heldout["polite"])}
for number in sizes:
    found[number] = accuracy_on(reward_model_of("polite", number), heldout["polite"])

# %% id="answer-curve" tags=["answer"] alt="Accuracy on polite's held-out rankings by the number of rankings, rising."
plot = axes("rankings by polite that trained it", "accuracy on polite's held-out rankings")
low, high = ([found[number][end] for number in sizes] for end in ("low", "high"))
shares = [found[number]["share"] for number in sizes]
plot.errorbar(sizes, shares, yerr=np.abs([np.subtract(shares, low), np.subtract(high, shares)]), marker="o", capsize=3)
plot.axhline(found[0]["share"], color="grey", linestyle="--")
plot.text(sizes[0], found[0]["share"], "the run's own reward model", va="bottom", color="grey")
plot.set_xscale("log")
plot.set_xticks(sizes, [str(number) for number in sizes])
table(
    {
        "rankings": ["0, the run's own", *map(str, sizes)],
        "accuracy": [of_number["share"] for of_number in found.values()],
        "95 % interval": [f"{of_number['low']:.2f} to {of_number['high']:.2f}" for of_number in found.values()],
    }
)
lesson.record(
    own_rm_on_polite=found[0]["share"],
    rm_of_10_on_polite=found[sizes[0]]["share"],
    rm_of_most_on_polite=found[sizes[-1]]["share"],
)

# %% [markdown] id="curve-look"
# **What to look for.** The x axis is logarithmic: each step costs about three times as much labeling. What the start knows
# already (answers to other prompts, word salads, refusals) needs no rankings; what is special about polite does. Where does
# the curve pass the dashed line, and does it still rise at its end? This is a learning curve as in the lecture on
# generalisation: too few rankings, and the model follows its *start* instead of its labeler.

# %% [markdown] id="exercise-width-text"
# ### Exercise 3: what ten rankings can tell you (●●○, 6 minutes)
#
# Ten rankings of four responses have at most 60 pairs. You count that you agree with a reward model in a share of them.
# How far from the truth can this share lie? Write half the width of the usual 95 % interval of a share $s$ from $n$
# independent pairs: $1.96 \sqrt{s (1 - s) / n}$.
#
# Then answer: is the true interval wider or narrower than that? The pairs of one prompt are not independent. Set `truth` to
# `"wider"` or `"narrower"`.
#
# <details><summary>Hint</summary>
#
# Three responses have three pairs, but whoever has ordered two of the pairs has often decided on the third.
#
# </details>


# %% id="exercise-width" tags=["exercise"]
def half_width(share: float, pairs: int) -> float:
    """Half the width of the 95 % interval of a share of independent pairs."""
    return ...


truth = ...

# %% id="check-width" tags=["check"]
check_half_width(half_width, truth)

# %% [markdown] id="yours-text"
# ## 4. Your own rankings
#
# Now rank yourself. In a terminal, in the folder of this project:
#
# ```
# make rank ARGS="--labeler YOUR_NAME"
# ```
#
# It shows ten prompts with four responses each, in random order, and asks for an order such as `2 1 4 3`, or `2=1 4 3` for
# a tie. Each answer is saved at once, in `runs/default/my_rankings.jsonl`, and the same command goes on where you stopped.
# A class can put its files together: `cat */my_rankings.jsonl > runs/default/my_rankings.jsonl`. With the same seed,
# everybody ranks the same responses; `--seed 1` gives others.
#
# You can also rank in this notebook. Insert a cell with
#
# ```python
# from rlhf_mini.classroom.rank import RankOptions, rank
#
# rank(RankOptions(run=lesson.run, labeler="YOUR_NAME"))
# ```
#
# If there is such a file, the next cell says whose preferences yours resemble, and the policy of section 5 is trained on
# yours as well. If there is none, the lesson goes on with the two personas.

# %% id="yours"
mine = lesson.run_dir / "my_rankings.jsonl"
if mine.is_file():
    own = [ranking for ranking in read_rankings(mine) if pairs(ranking["ranks"])]
    files["you"] = mine
    by_me = [ranking["ranks"] for ranking in own]
    others = {
        judge.name: [ranking["ranks"] for ranking in ranked_by(judge, own)] for judge in (*labelers, *judges.values())
    }
    counts = {name: agreement_of(of_other, by_me) for name, of_other in others.items()}
    counts["the run's reward model"] = Count(
        (own_rm := accuracy_on(lesson.run_dir / "rm", own))["share"] * own_rm["pairs"], own_rm["pairs"]
    )
    best_first = sorted(counts, key=lambda name: -counts[name].share)
    table(
        {
            "who": best_first,
            "agrees with you": [counts[name].share for name in best_first],
            "of pairs": [counts[name].pairs for name in best_first],
        }
    )
else:
    console.print(f"There is no {mine} yet.")

# %% [markdown] id="yours-look"
# **What to look for.** If you have ranked: who is nearest to you, and is the difference to the next one larger than exercise
# 3 allows? Did you rank as you had intended to? InstructGPT's labelers were chosen by how well they agreed with the
# researchers (Ouyang et al. 2022, appendix B.1): whose preferences are measured was decided before the first ranking.
#
# ## 5. The policy becomes theirs
#
# The last step: a reward model for each persona, and a short PPO against it. SFT, prompts and all options are the same.
#
# **Predict first.** How will the two policies differ? Which of the two will have the higher gold score?

# %% id="guess-policies" tags=["guess"]
guess = ""

# %% id="policies"
lesson.predict(guess)
policies = {"sft": lesson.run_dir / "sft", "the run's ppo": lesson.run_dir / "ppo"}
for name in files:
    variant = reward_model_of(name, sizes[-1]).parent.name
    policies[name] = lesson.train(
        "ppo",
        variant,
        updates=lesson.size(full=25, nano=2),
        warmup_updates=lesson.size(full=5, nano=1),
        sample_every=25,
    )

# %% id="answer-policies" tags=["answer"] alt="Mean quality of each policy in the eyes of polite and of brief, as points."
measured = measure_policies(policies, examples, lesson.run_dir / "sft", seed=lesson.seed)
quality = {
    name: {
        judge: mean_intervals(
            np.array([[judges[judge].quality(*pair)] for pair in zip(examples, of.responses, strict=True)])
        )[0]
        for judge in ("polite", "brief")
    }
    for name, of in measured.items()
}
table(
    {
        "policy": list(measured),
        "by polite": [of["polite"] for of in quality.values()],
        "by brief": [of["brief"] for of in quality.values()],
        "by gold": [of.gold for of in measured.values()],
        "words": [float(np.mean([len(one.text.split()) for one in of.responses])) for of in measured.values()],
        "courteous": [courteous_share(of.responses) for of in measured.values()],
    }
)
plot = axes("quality in the eyes of brief", "quality in the eyes of polite")
for name, of in quality.items():
    (point,) = plot.plot(of["brief"].mean, of["polite"].mean, "o")
    plot.hlines(of["polite"].mean, of["brief"].low, of["brief"].high, color=point.get_color(), alpha=0.5)
    plot.vlines(of["brief"].mean, of["polite"].low, of["polite"].high, color=point.get_color(), alpha=0.5)
    plot.annotate(name, (of["brief"].mean, of["polite"].mean), xytext=(5, 5), textcoords="offset points")
for index in range(0, len(examples), len(examples) // 4):
    console.print(f"user: {printable(examples[index]['prompt'][-1]['content'])}")
    for name in ("sft", *files):
        console.print(f"    {name}: {printable(measured[name].responses[index].text)}")
lesson.record(
    polite_policy_by_polite=quality["polite"]["polite"].mean,
    brief_policy_by_polite=quality["brief"]["polite"].mean,
    polite_policy_by_brief=quality["polite"]["brief"].mean,
    brief_policy_by_brief=quality["brief"]["brief"].mean,
)

# %% [markdown] id="wins-text"
# And head to head: how often does the policy of polite win against that of brief, in the eyes of each judge?

# %% id="wins"
rivals = [[measured[name].responses[index] for name in ("polite", "brief")] for index in range(len(examples))]


def win_rate(judge):
    """Of polite's policy over brief's, a tie counts one half."""
    verdicts = [judge.rank(example, both) for example, both in zip(examples, rivals, strict=True)]
    return mean_intervals(np.array([[0.5 + 0.5 * np.sign(second - first)] for first, second in verdicts]))[0]


wins = {name: win_rate(judge) for name, judge in judges.items()} | {
    judge.name: win_rate(judge) for judge in heldout_labelers()
}
table({"judge": list(wins), "polite's policy wins": list(wins.values())})

# %% [markdown] id="policies-look"
# **What to look for.** Each policy should win in the eyes of its own persona and lose in those of the other. Nothing
# happened but that other people ranked the same responses. Gold and the held-out labelers, who were asked about neither
# taste, may hardly see a difference, or see one that surprises you: whoever evaluates decides what counts as better.
#
# If a policy hardly moved, look at section 3: PPO can follow only what the reward model has understood.

# %% [markdown] id="quiz"
# ## Quiz
#
# **1. Two labelers agree on 73 % of the pairs. A reward model agrees with each of them on 70 %. Is it bad?**
#
# <details><summary>Yes: it is wrong in 30 % of the pairs.</summary>No. Where labelers contradict each other, no answer is
# right for both.</details>
# <details><summary>No: it agrees with people about as often as they agree with each other.</summary>Right. That is the
# comparison InstructGPT makes. It does not show that the errors are harmless, though.</details>
# <details><summary>One cannot tell without gold.</summary>No. Agreement needs no gold; gold would answer another question:
# who of them is right.</details>
#
# **2. You train one reward model on the rankings of polite and brief together. What will PPO do?**
#
# <details><summary>Courteous answers to polite, short ones to brief.</summary>No. The reward model is not told who asks or
# who ranked.</details>
# <details><summary>What scores best on average, which may please neither.</summary>Right. The Bradley-Terry model has one
# score per response. It takes disagreement for noise.</details>
# <details><summary>Nothing: the preferences cancel out.</summary>No. They share the wish for good answers, and tastes
# cancel only where they are opposed.</details>
#
# **3. A class of 30 ranks ten prompts each. Which choice teaches the reward model most?**
#
# <details><summary>Everybody ranks the same ten prompts.</summary>No. That measures agreement well, but the reward model
# sees ten prompts only.</details>
# <details><summary>Everybody ranks ten different prompts.</summary>Right for training: 300 different rankings. But then you
# cannot measure how far you agree. Let a few prompts overlap, as InstructGPT did.</details>
# <details><summary>One student ranks all 300.</summary>No. The rankings are as many and less noisy, but the model then
# follows one student.</details>
#
# ## Pitfalls
#
# - Ties are information: whoever must order everything adds noise.
# - Show responses blind and in random order. People like what they read first, and what they know to be "the new model".
# - Rank before you look at what the reward model says.
# - Accuracy on *training* rankings says nothing about whether the reward model follows you. Hold prompts out, not pairs.
# - Files of rankings name people. Ask before you publish them.
#
# ## What is simplified
#
# - Two tastes of one line each, without noise, are easier to learn than a person. Real people are less consistent than
#   they believe.
# - InstructGPT's labelers were trained, had instructions of several pages and could ask. Prompts came from customers
#   (Ouyang et al. 2022, section 3.4 and appendix B).
# - Disagreement is averaged away here, as in the paper. Conditioning on groups, or asking for the variance as well as
#   the mean, are alternatives that the paper names as future work (section 5.2 and 5.3).
# - PPO is stopped after a few updates; with more, the policies would move further apart.

# %% id="finish"
lesson.finish()
