# %% [markdown] id="title"
# # Data is the difference
#
# **The question.** Same base model, same training, other demonstrations: how much does the data change? And can you
# trust a language model that judges the result?
#
# In lesson 1, SFT imitated its writers, with their mistakes. In 2023, many models were the same LLaMA with other
# data. Alpaca had 52,000 demonstrations written by OpenAI's text-davinci-003, from 175 seed tasks
# ([Taori et al. 2023](https://crfm.stanford.edu/2023/03/13/alpaca.html)). Vicuna had about 70,000 conversations that
# users of ChatGPT had shared ([Chiang et al. 2023](https://lmsys.org/blog/2023-03-30-vicuna/)). LIMA had 1,000 chosen
# with care ([Zhou et al. 2023](https://arxiv.org/abs/2305.11206)). In this lesson you train one model on six data sets,
# one of which the models write themselves, as in Self-Instruct
# ([Wang et al. 2022](https://arxiv.org/abs/2212.10560)). Then you test a judge as Vicuna used one.

# %% id="setup"
import random

from rlhf_mini.classroom.checks.lesson6 import check_biases, check_fair_wins, check_rouge, unknown_judge
from rlhf_mini.classroom.data import answer, epochs, generate_instructions, of_writer
from rlhf_mini.classroom.judge import agreement, at_equal_length, biased_judge, both_orders, model_judge, share
from rlhf_mini.classroom.lesson import Lesson
from rlhf_mini.classroom.measure import measure_policies
from rlhf_mini.classroom.show import axes, table
from rlhf_mini.core.examples import Response, read_demonstrations, read_prompts
from rlhf_mini.core.files import write_jsonl

lesson = Lesson(6)
examples = read_prompts("data/prompts/validation.jsonl")[: lesson.size(full=600, nano=24)]

# %% [markdown] id="sets-text"
# ## 1. Five data sets by writers
#
# Six simulated writers wrote this project's demonstrations, some with more care than others
# ([writers.yaml](../data/knowledge/writers.yaml)). So we can choose by *quantity* and by *quality*. Each data set gets
# the same number of gradient steps: a small one is simply read more often.

# %% id="sets"
SIZE, FEW, STEPS = lesson.size(full=(1000, 100, 120), nano=(160, 40, 8))
written, rng = read_demonstrations("data/demonstrations.jsonl"), random.Random(lesson.seed)
mixed = rng.sample(written, SIZE)
cleaner = rng.sample(of_writer(written, "careful"), SIZE)
sets = {
    "mixed": mixed,
    "fewer": mixed[:FEW],
    "noisier": rng.sample(of_writer(written, "careless"), SIZE),
    "cleaner": cleaner,
    "fewer, cleaner": cleaner[:FEW],
}
table(
    {
        "data set": list(sets),
        "demonstrations": [len(chosen) for chosen in sets.values()],
        "passes": [epochs(len(chosen), STEPS) for chosen in sets.values()],
        "first completion": [chosen[0]["completion"][0]["content"][:70] for chosen in sets.values()],
    },
    digits=1,
)

# %% [markdown] id="guess-sets-text"
# **Predict first.** Sort the five by how good the model will be. Above all: which is better, 1,000 demonstrations by
# everybody, or 100 by the careful writer?

# %% id="guess-sets" tags=["guess"]
guess = ""

# %% [markdown] id="train-text"
# `train` starts from the base each time. It uses demonstrations alone (`ptx_coef=0`, no pretraining texts), so that
# nothing but the data differs, and to save time.


# %% id="train"
def train(name: str, demonstrations: list):
    """SFT from the base on these demonstrations: the folder of the checkpoint."""
    file = lesson.folder / f"{name.replace(', ', '_')}.jsonl"
    write_jsonl(file, demonstrations)
    return lesson.train(
        "sft", file.stem, demonstrations=str(file), num_train_epochs=epochs(len(demonstrations), STEPS), ptx_coef=0.0,
        save_steps=0, show_every=0,
    )  # fmt: skip


lesson.predict(guess)
models = {name: train(name, demonstrations) for name, demonstrations in sets.items()}

# %% id="answer-sets" tags=["answer"]
found = measure_policies(models, examples, lesson.run_dir / "sft")


def compare(names: list[str]) -> None:
    table(
        {
            "trained on": names,
            "gold": [found[name].gold for name in names],
            "like references": [found[name].reference for name in names],
            "tokens": [found[name].length for name in names],
            "a response": [found[name].responses[0].text[:60] for name in names],
        }
    )


print("user:", examples[0]["prompt"][-1]["content"])
compare(list(models))
lesson.record(
    gold_mixed=found["mixed"].gold.mean,
    gold_fewer=found["fewer"].gold.mean,
    gold_noisier=found["noisier"].gold.mean,
    gold_cleaner=found["cleaner"].gold.mean,
    gold_fewer_cleaner=found["fewer, cleaner"].gold.mean,
)

# %% [markdown] id="sets-look"
# **What to look for.** Compare in pairs. *mixed* with *fewer*, and *cleaner* with *fewer, cleaner*: what is ten times
# the number of demonstrations worth? *noisier* with *cleaner*: what is care worth? An interval says how far the mean
# would vary with other prompts, not with other demonstrations or another seed.
#
# Over five seeds ([docs/bands.md](../docs/bands.md)), both count: ten times as many demonstrations help, and careful
# writers help more.
#
# LIMA says that a model learns almost all of its knowledge in pretraining, and from demonstrations mostly the form of
# an answer (Zhou et al. 2023). Form needs few examples; but wrong answers teach their form, too: that it is fine to
# err.
#
# Here quantity may count, too: a small set is read often enough to be learned by heart (lesson 1). LIMA's base had 65
# billion parameters (Zhou et al. 2023), ours has one million.
#
# ## 2. Demonstrations without people
#
# Self-Instruct (Wang et al. 2022) started with 175 tasks that people had written. GPT-3 continued lists of eight
# instructions, and so wrote new ones; each new one that was not too similar to the others joined the pool. GPT-3 also
# wrote the answers, and was then trained on them. For Alpaca, a stronger model did the writing, and a weaker one was
# trained (Taori et al. 2023).
#
# Here the seeds are the prompts of *fewer, cleaner*. The **base** continues lists of five of them: on its web it has
# read many lists of requests that nobody answered.

# %% id="generate"
seeds = [each["prompt"][0]["content"] for each in sets["fewer, cleaner"] if len(each["prompt"]) == 1]
pool = generate_instructions(lesson.load("base"), seeds, SIZE, seed=lesson.seed, lists=lesson.size(full=512, nano=128))
print(f"{len(seeds)} seeds, {pool.offered} instructions offered, {len(pool.kept)} kept. Ten of these:")
for instruction in random.Random(lesson.seed).sample(pool.kept, 10):
    print("-", instruction)
table(
    {
        "dropped because": list(pool.dropped),
        "number": [len(instructions) for instructions in pool.dropped.values()],
        "for example": [instructions[-1][:80] for instructions in pool.dropped.values()],
    }
)
lesson.record(kept=len(pool.kept) / pool.offered)

# %% [markdown] id="generate-look"
# **What to look for.** The new instructions are about people and things that no seed names; the base has them from
# pretraining. Some are odd, or have no answer. The filter cannot see that: it knows form and similarity only. It also
# drops *prompts of the evaluation*: a model that had been trained on them would be judged on its training data.
#
# Similar means ROUGE-L of 0.7 or more (Wang et al. 2022). ROUGE-L (Lin 2004) counts the longest *common subsequence*
# of two texts: words that both have in the same order, with gaps allowed. With $c$ such words, and $m$ and $n$ words in
# the two texts, it is
#
# $$F = \frac{2c}{m + n}$$

# %% [markdown] id="exercise-rouge-text"
# ### Exercise 1: ROUGE-L by hand (●○○, 5 minutes)
#
# Work out the ROUGE-L of each pair. Capitals and full stops do not count.
#
# <details><summary>Hint</summary>
#
# "Name three birds" and "Name two birds" have two words in common in the same order, *name* and *birds*, and three
# words each. So $F = 2 \cdot 2 / (3 + 3)$, and the second one would be kept.
#
# </details>

# %% id="exercise-rouge" tags=["exercise"]
rouge = {
    ("Write a poem about the sea.", "Write a short poem about the moon."): ...,
    ("What sound does a bee make?", "Which sound do bees make?"): ...,
    ("The dog sees the cat.", "The cat sees the dog."): ...,
}

# %% id="check-rouge" tags=["check"]
check_rouge(rouge)

# %% [markdown] id="guess-student-text"
# Now a **teacher** answers the new instructions. For Alpaca that was text-davinci-003; here it is this run's PPO model.
# The student starts from the base and gets nothing but the teacher's answers.
#
# **Predict first.** Will the student be better than the model trained on the seeds, *fewer, cleaner*? Better than
# *cleaner*, with 1,000 demonstrations by a careful person? Better than its teacher?

# %% id="guess-student" tags=["guess"]
guess = ""

# %% id="student"
lesson.predict(guess)
generated = answer(lesson.load("ppo"), pool.kept, seed=lesson.seed)
for each in generated[:5]:
    print("user: ", each["prompt"][0]["content"])
    print("model:", each["completion"][0]["content"])
models["generated"] = train("generated", generated)

# %% id="answer-student" tags=["answer"] alt="Mean gold of the models trained on each data set, with intervals, beside the teacher's."
new = {"generated": models["generated"], "the teacher": lesson.run_dir / "ppo"}
found |= measure_policies(new, examples, lesson.run_dir / "sft")
plot = axes("mean gold over validation prompts", "")
for name in reversed(found):
    gold = found[name].gold
    plot.errorbar(gold.mean, name, xerr=[[gold.mean - gold.low], [gold.high - gold.mean]], marker="o", color="#0072b2")
compare(["fewer, cleaner", "cleaner", "generated", "the teacher"])
lesson.record(gold_generated=found["generated"].gold.mean)

# %% [markdown] id="student-look"
# **What to look for.** Where does *generated* lie between its seeds and its teacher? Nobody wrote or checked these
# answers, and the wrong ones are among them: read the five above again. A student can take over its teacher's tone more
# easily than its knowledge (Gudibande et al. 2023, [arXiv 2305.15717](https://arxiv.org/abs/2305.15717)). In this
# project student and teacher come from the same base, so the student has the knowledge already.
#
# ## 3. A language model as a judge
#
# Gold exists in this small world only. For Vicuna, GPT-4 was asked which of two answers is better (Chiang et al. 2023).
# Zheng et al. (2023, [arXiv 2306.05685](https://arxiv.org/abs/2306.05685)) tested such judges: GPT-4 agreed with people
# in over 80 % of the cases, as often as people with each other. But it had biases, too, for the **position** of an
# answer, for its **length**, and perhaps for its own answers.
#
# A judge costs one prompt. The cell asks the base, after two examples, which of two answers is better, *A* or *B*. Each
# pair is shown twice, the second time in the other order.
#
# **Predict first.** How often will the two verdicts agree? How often will the answer that is shown first win?

# %% id="guess-judge" tags=["guess"]
guess = ""

# %% id="answer-judge" tags=["answer"]
lesson.predict(guess)
few = slice(0, lesson.size(full=150, nano=8))
one, other = found["cleaner"].responses[few], found["noisier"].responses[few]
asked = both_orders(model_judge(lesson.load("base")), examples[few], one, other)
by_gold = both_orders(biased_judge(first_bonus=0, word_bonus=0), examples[few], one, other)
table(
    {
        "the base as a judge": [
            "same winner in both orders",
            "the answer shown first wins",
            "agrees with gold, one order",
            "agrees with gold, both orders",
            "agrees with gold, if it always said A",
        ],
        "share": [
            asked.consistent,
            asked.first_wins,
            agreement(asked.one_order, by_gold.both_orders),
            agreement(asked.both_orders, by_gold.both_orders),
            agreement(0 * asked.both_orders + 1, by_gold.both_orders),
        ],
    }
)
lesson.record(consistent=asked.consistent.mean, first_wins=asked.first_wins.mean)

# %% [markdown] id="judge-look"
# **What to look for.** If the answer that is shown first nearly always wins, the verdict is about the letter, not about
# the answer. Now compare the agreement with gold in one order with the last row. *cleaner* is always shown as *A*
# there, and it usually is the better one. So a judge that says *A* whatever it reads agrees with gold often, and a high
# agreement may be no merit. Both orders together
# remove the bias, but what is left is near chance: averaging removes a bias, it does not add knowledge.
#
# GPT-4 gave the same verdict in both orders for 65 % of the pairs, with a plain prompt (Zheng et al. 2023, table 2).
#
# ## 4. A judge who knows, and is biased
#
# To see what biases do to a *ranking*, we need a judge that knows something. So we simulate one. It prefers by gold, as
# no real judge could. Being shown first is worth 0.2 points of gold to it, and each extra word 0.02.

# %% id="biased"
judge = biased_judge(first_bonus=0.2, word_bonus=0.02)
names = [name for name in found if name not in ("mixed", "the teacher")]
rival = found["mixed"].responses
verdicts = {name: both_orders(judge, examples, found[name].responses, rival) for name in names}
table(
    {
        "against mixed": names,
        "words more": [float(verdicts[name].longer.mean()) for name in names],
        "same winner in both orders": [verdicts[name].consistent for name in names],
        "shown first wins": [verdicts[name].first_wins for name in names],
    }
)

# %% [markdown] id="exercise-fair-text"
# ### Exercise 2: a fair verdict (●●○, 5 minutes)
#
# The judge sees each pair in both orders. Above 0, a margin means that *ours* is preferred. Return for each pair 1 if
# ours wins in both orders, 0 if it loses in both, and 0.5 if the order decides.
#
# <details><summary>Hint</summary>
#
# `(ours_first > 0) * 1.0` is 1 where ours wins and else 0. Take the mean of two such arrays.
#
# </details>


# %% id="exercise-fair" tags=["exercise"]
def fair_wins(ours_first, ours_second):
    """Wins (n,) in {0, 0.5, 1} from the margins (n,) when ours is shown first, and when it is shown second."""
    return ...


# %% id="check-fair" tags=["check"]
check_fair_wins(fair_wins)

# %% [markdown] id="remedies-text"
# The cell judges each data set against *mixed* in four ways: by gold; by the biased judge, with *mixed* always shown
# second; in both orders; and in both orders *at equal length*, which is what a logistic regression predicts for two
# answers of the same length (Dubois et al. 2024, [arXiv 2404.04475](https://arxiv.org/abs/2404.04475)).

# %% id="remedies" alt="Win rates of each data set against mixed, judged in four ways."
true = {name: both_orders(biased_judge(0, 0), examples, found[name].responses, rival) for name in names}
ways = {
    "gold": [share(true[name].both_orders) for name in names],
    "biased, one order": [share(verdicts[name].one_order) for name in names],
    "both orders": [share(verdicts[name].both_orders) for name in names],
    "both orders, equal length": [at_equal_length(verdicts[name].both_orders, verdicts[name].longer) for name in names],
}
plot = axes("win rate against mixed", "")
for row, (way, rates) in enumerate(ways.items()):
    places = [place - 0.15 * row for place in range(len(names), 0, -1)]
    spread = [[rate.mean - rate.low for rate in rates], [rate.high - rate.mean for rate in rates]]
    plot.errorbar([rate.mean for rate in rates], places, xerr=spread, fmt="o", label=way)
plot.set_yticks([place - 0.22 for place in range(len(names), 0, -1)], names)
plot.axvline(0.5, color="grey", linewidth=0.8)
plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
for way, rates in ways.items():
    ranked = sorted(zip(names, rates, strict=True), key=lambda pair: -pair[1].mean)
    print(f"{way}: " + " > ".join(f"{name} {rate.mean:.2f}" for name, rate in ranked))
lesson.record(one_order_noisier=ways["biased, one order"][names.index("noisier")].mean)

# %% [markdown] id="remedies-look"
# **What to look for.** In one order, every data set gains: whoever is shown first has an advantage, and a model can
# "beat" *mixed* without being better. In both orders that is gone. The advantage of length is still there, because it
# does not depend on the order; compare the numbers of words above. And fairness has a price: where the answers differ by
# less than the first place is worth, the order decides, and the pair is a tie. The table above says in how many pairs
# both orders agree. So small advantages do not count any more, and win rates may lie elsewhere than by gold. *Equal
# length* is no free lunch, either: where a better answer needs more words, it takes away earned points, too.

# %% [markdown] id="exercise-biases-text"
# ### Exercise 3: test an unknown judge (●●●, 8 minutes)
#
# `unknown` judges like the one above, but its two numbers are hidden. It takes a list of prompts and two lists of
# answers, and returns a margin for each: above 0 if it prefers the first answer. Find out both numbers with
# experiments of your own: what is the first place worth to it, and what an extra word?
#
# <details><summary>Hint</summary>
#
# The margin is the difference in gold + the bonus for the first place + the bonus for words × the difference in words.
# Show it the same answer twice: two of the three parts are 0. For the words, take two answers that are equally useless
# but differ in length, such as `Response("no", True)` and `Response("no no no", True)`.
#
# </details>

# %% id="exercise-biases" tags=["exercise"]
unknown = unknown_judge()
prompt = examples[:1]
margin = unknown(prompt, [Response("no", True)], [Response("no no no", True)])[0]  # one experiment, to begin with

first_bonus = ...
word_bonus = ...

# %% id="check-biases" tags=["check"]
check_biases(first_bonus, word_bonus)

# %% [markdown] id="quiz"
# ## Quiz
#
# **1. A model that was trained on 100 demonstrations, read forty times, does worse than one trained on 1,000, read four
# times. Why?**
#
# <details><summary>It had fewer gradient steps.</summary>No. Both had the same number: that is why the small set was
# read more often.</details>
# <details><summary>It overfits.</summary>Right. It learns the 100 answers by heart, and what they have in common by
# chance: the training error falls, the error on new prompts does not. Less data means more variance.</details>
# <details><summary>The 100 demonstrations were worse.</summary>No. They were drawn at random from the 1,000, so they are
# as good on average.</details>
#
# **2. Alpaca was trained on answers of text-davinci-003, which invents facts now and then. What does the student
# learn?**
#
# <details><summary>To invent facts where it does not know them.</summary>Right. It imitates confident answers to
# questions that it cannot answer itself. The filter looks at instructions, not at truth.</details>
# <details><summary>Only the right answers, because the wrong ones contradict each other.</summary>No. The loss rewards
# every token of every answer. Errors do not cancel out if they are all told in the same confident tone.</details>
# <details><summary>Nothing about facts, because it learns the form only.</summary>No. Form comes first, but the
# completions are full of statements, and the student is trained on each of them.</details>
#
# **3. A judge prefers the first answer in 85 % of the cases. You swap at random which model is shown first. What is true
# now?**
#
# <details><summary>The win rates are unbiased but noisier.</summary>Right. Each model is shown first equally often, so
# neither gains. But most verdicts now depend on the coin: with the same number of prompts, a difference is harder to
# see.</details>
# <details><summary>The judge has become fair.</summary>No. It is as biased as before in every single pair; only the mean
# is fair.</details>
# <details><summary>Length bias is gone, too.</summary>No. The longer answer is longer in both places.</details>
#
# ## Pitfalls
#
# - Compare data sets at the same number of gradient steps, not of passes: otherwise the larger one is also trained for
#   longer.
# - Generated data may contain the evaluation. Look for its prompts before you train, without regard to case and greetings.
# - One training a data set says nothing about how much another draw of the demonstrations or another seed would change.
# - Show a judge both orders. If you do not, at least draw the order at random: never your own model always first.
# - A judge's agreement with people counts only on pairs on which people agree, and next to chance.
#
# ## What is simplified
#
# - Alpaca's teacher was far larger than the student and knew more. Here both have the same size and the same base.
# - Self-Instruct shows eight instructions at a time, six by people and two generated; here it is five, at most one of
#   them generated, because the context is short. It has GPT-3 tell classification tasks from others and write inputs
#   beside instructions (Wang et al. 2022).
# - Its instructions are about all that GPT-3 has read. The base's web consists of the same kinds of requests as the
#   evaluation, so that the generated instructions fit it better than they would outside.
# - LIMA's 1,000 demonstrations were chosen for variety, too. Here *cleaner* means one careful writer.
# - A model of one million parameters cannot judge. GPT-4 can, and is biased less (Zheng et al. 2023). The judge of section
#   4 is simulated, and its biases are simpler than those of a real one.

# %% id="finish"
lesson.finish()
