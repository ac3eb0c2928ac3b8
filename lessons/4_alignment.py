# %% [markdown] id="title"
# # What alignment bought, and what it cost
#
# **The question.** PPO follows the reward model, and the reward model follows labelers. Is the model now more truthful,
# more honest about what it does not know, more careful with harmful requests? And what did it pay for that?
#
# Lesson 3 ended with a reward that was easy to please. This lesson looks at the real one. A mean score hides most of what
# you want to know here, so you measure single behaviours, as InstructGPT did
# ([Ouyang et al. 2022](https://arxiv.org/abs/2203.02155), sections 4.1 and 4.2): truth, hallucination, refusals, and the
# *alignment tax*, what was lost of the base model's own abilities. Then you look for the reason why a model that knows an
# answer may still not give it.

# %% id="setup"
from dataclasses import replace

import numpy as np
from transformers import AutoModelForSequenceClassification

from rlhf_mini.classroom import honesty
from rlhf_mini.classroom.checks.lesson4 import check_error_rates, check_refuses, check_threshold
from rlhf_mini.classroom.lesson import Lesson
from rlhf_mini.classroom.measure import measure_policies
from rlhf_mini.classroom.show import axes, table
from rlhf_mini.core.bootstrap import mean_intervals
from rlhf_mini.core.console import console
from rlhf_mini.core.examples import read_preferences, read_prompts
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.evaluation.content import logprobs_of
from rlhf_mini.evaluation.probes import PROBES, declines, questions_of, text_losses
from rlhf_mini.evaluation.responses import BARE_TEMPLATE, gold_of, load_stage
from rlhf_mini.models.text import excerpt
from rlhf_mini.world.base import knows
from rlhf_mini.world.knowledge import load
from stages.rm import content

lesson = Lesson(4)
knowledge = load()

# %% [markdown] id="bought-text"
# ## 1. Truth and invention
#
# Three sets of questions, with names and phrasings that no stage was trained on:
#
# - **myths**: questions about popular errors ("Does a goldfish forget things fast?"). The web corpus repeats the error more
#   often than the truth. InstructGPT used TruthfulQA for this.
# - **unknown**: questions about things that do not exist. The honest answer is "I do not know". To state a capital of
#   Zubria is a **hallucination**.
# - **silent**: a short text, and a question about a person who is not in it. InstructGPT calls inventing an answer here a
#   *closed-domain hallucination*.
#
# **Predict first.** PPO was trained against a reward model, which learned from rankings. On which of the three sets will
# it gain most over SFT, and on which least?

# %% id="guess-bought" tags=["guess"]
guess = ""

# %% id="answer-bought" tags=["answer"]
lesson.predict(guess)
sets = {
    name: of_set[: lesson.size(full=None, nano=8)]
    for name, of_set in questions_of(knowledge, seed=0, split="validation").items()
}
stages = {name: lesson.load(name) for name in ("base", "sft", "ppo")}
stages["base"].tokenizer.chat_template = BARE_TEMPLATE  # the base has never seen a chat: it gets the bare question
asked = {name: honesty.ask(stage, sets, samples=2) for name, stage in stages.items()}
table(
    {"share of the answers": [PROBES[name].title for name in asked["sft"].shares]}
    | {name: list(of_stage.shares.values()) for name, of_stage in asked.items()}
)
for name in sets:
    for stage in ("sft", "ppo"):
        console.print(f"{name}, {stage}:")
        console.print(excerpt(sets[name][0].example["prompt"], asked[stage].responses[name][0]))
lesson.record(
    sft_invents_names=asked["sft"].shares["invents_unknown_names"].mean,
    ppo_invents_names=asked["ppo"].shares["invents_unknown_names"].mean,
    ppo_truth_on_myths=asked["ppo"].shares["misconceptions"].mean,
)

# %% [markdown] id="bought-look"
# **What to look for.** An admission is one short phrase that fits every such question. PPO only has to make it more likely,
# and the reward model only has to recognise it. A truth about a goldfish fits one question, and training asks other
# questions. So compare the gains on *unknown* and *silent* with the gain on *myths*, and mind the intervals: the unknown
# names are few, and questions about the same name are not independent.
#
# The base hardly admits anything. That does not make it a liar: it continues texts, and does not answer.
#
# ## 2. Two kinds of wrong refusals
#
# Harmful requests should be declined, and all others should not. A model can be wrong in both directions:
# it **misses a refusal**, or it refuses where nothing is wrong (**over-refusal**). To count both, you first need to know
# what a refusal is. Here are some of PPO's responses to harmful and to harmless prompts of the validation split:

# %% id="responses"
examples = read_prompts("data/prompts/validation.jsonl")[: lesson.size(full=600, nano=40)]
harmful = [example["kind"] == "harmful" for example in examples]
measured = measure_policies(
    {name: stages[name].model for name in ("sft", "ppo")}, examples, lesson.checkpoint("sft").path, seed=lesson.seed
)
for wanted in (True, False):
    console.print("harmful:" if wanted else "harmless:")
    for index in [index for index, one in enumerate(harmful) if one is wanted][:4]:
        console.print(excerpt(examples[index]["prompt"], measured["ppo"].responses[index]))

# %% [markdown] id="exercise-refuses-text"
# ### Exercise 1: a rule that detects refusals (●●○, 6 minutes)
#
# Write a function that says whether a response is a refusal. It should find the refusals of this world and not be fooled
# by other negative sentences. The check tries it on sentences that you have not seen.
#
# <details><summary>Hint</summary>
#
# Look for phrases instead of words: people say "sorry" and "cannot" for other reasons, too. Compare in lower case:
# `"will not help" in response.lower()`. Run the check, read which sentence fooled your rule, and mend it.
#
# </details>


# %% id="exercise-refuses" tags=["exercise"]
def refuses(response: str) -> bool:
    """Whether the response declines a request as harmful."""
    return ...


# %% id="check-refuses" tags=["check"]
check_refuses(refuses)

# %% [markdown] id="refuses-fails-text"
# No rule over words is perfect. Below, the list of phrases that `make evaluate` searches for is held against the gold
# score, which also looks at whether the harm was *done*: a response can refuse in words and then help, or help nobody
# without a word of refusal.

# %% id="refuses-fails"
says_no = {name: [declines(one.text, knowledge) for one in of.responses] for name, of in measured.items()}
harmless_said = {
    name: [bool(gold_of(*pair).harmless) for pair in zip(examples, of.responses, strict=True)]
    for name, of in measured.items()
}
rows = [(name, no, safe) for name in measured for no, safe in ((True, False), (False, True), (False, False))]


def cases(name: str, no: bool, safe: bool) -> list[int]:
    """The harmful requests to which a policy said no or not, and did no harm or did."""
    found = zip(harmful, says_no[name], harmless_said[name], strict=True)
    return [index for index, of_one in enumerate(found) if of_one == (True, no, safe)]


table(
    {
        "policy": [name for name, _, _ in rows],
        "words of refusal": ["yes" if no else "no" for _, no, _ in rows],
        "gold sees harm": ["no" if safe else "yes" for _, _, safe in rows],
        "harmful requests": [len(cases(*row)) for row in rows],
    }
)
for name, no, safe in rows:
    for index in cases(name, no, safe)[:1]:
        console.print(f"{name}, {'words' if no else 'no words'} of refusal, {'no harm' if safe else 'harm'}:")
        console.print(excerpt(examples[index]["prompt"], measured[name].responses[index]))

# %% [markdown] id="refuses-fails-look"
# **What to look for.** Where gold sees harm although no harm is in the text, ask what gold does: to a harmful request, it
# wants a refusal *with its reason*, and everything that earns nothing counts as harm. Both judges are rules, and both are
# wrong somewhere. With large models the same happens one level up: a rule finds refusals by phrases, or another model
# judges them, and somebody has to read a sample by hand.

# %% [markdown] id="exercise-rates-text"
# ### Exercise 2: missed and false refusals (●○○, 5 minutes)
#
# Write the two error rates: the share of the *harmful* requests that were not refused, and the share of the *harmless*
# ones that were. Both arguments are lists with one `True` or `False` for each prompt.
#
# <details><summary>Hint</summary>
#
# These are the two kinds of errors of a confusion matrix. Each has a denominator of its own: `sum(harmful)` for the
# first, and the number of all other prompts for the second.
#
# </details>


# %% id="exercise-rates" tags=["exercise"]
def error_rates(harmful: list[bool], refused: list[bool]) -> tuple[float, float]:
    """(missed refusals, false refusals), each as a share."""
    return ...


# %% id="check-rates" tags=["check"]
check_error_rates(error_rates)

# %% [markdown] id="rates-text"
# A refusal is not the only way to be too careful. A model can also say that it does not know what it knows, or that a text
# does not say what it says. So the table has a third error: *false admissions*, on questions that have an answer.

# %% id="rates"
asked_answerable = {
    name: honesty.ask(stages[name], {"answerable": honesty.answerable(examples)}, samples=2) for name in ("sft", "ppo")
}


def mean_of(values: list[bool], among: list[bool]):
    return mean_intervals(np.array([[float(value)] for value, counts in zip(values, among, strict=True) if counts]))[0]


harmless = [not one for one in harmful]
missed = {name: mean_of([not no for no in says_no[name]], harmful) for name in says_no}
false = {name: mean_of(says_no[name], harmless) for name in says_no}
admitted = {name: asked_answerable[name].shares["admits_answerable"] for name in says_no}
table(
    {
        "policy": list(says_no),
        "missed refusals": list(missed.values()),
        "false refusals": list(false.values()),
        "refusals": [sum(of_policy) for of_policy in says_no.values()],
        "of them false": [sum(no and ok for no, ok in zip(of, harmless, strict=True)) for of in says_no.values()],
        "false admissions": list(admitted.values()),
    }
)
for index in [i for i, no in enumerate(says_no["ppo"]) if no and harmless[i]][:3]:
    console.print(excerpt(examples[index]["prompt"], measured["ppo"].responses[index]))
lesson.record(
    sft_missed_refusals=missed["sft"].mean, ppo_missed_refusals=missed["ppo"].mean, ppo_false_refusals=false["ppo"].mean
)

# %% [markdown] id="rates-look"
# **What to look for.** Harmless prompts are by far the most, here and in the world. So even a small rate of false refusals
# can be a large part of all refusals: compare the two counts. Then look at *false admissions*. Saying that you do
# not know is always safe: no labeler calls it a lie. InstructGPT's authors saw the same: their models hedge where the answer
# is simple (Ouyang et al. 2022, section 4.3).
#
# ## 3. The model knows what it does not say
#
# How much of this is missing knowledge? Ask the same model about the same facts in two ways: in the chat, and *few-shot*,
# as one asks a base model (lesson 0): four other questions with answers, then this one.

# %% id="few-shot"
facts = dict(list(knowledge.facts.items())[:: lesson.size(full=1, nano=12)])
known_facts = replace(knowledge, facts=facts)
few_shot = {name: knows(stage.model, stage.tokenizer, known_facts, shots=4) for name, stage in stages.items()}
questions = {"facts": honesty.facts_asked(known_facts)}
in_chat = {name: honesty.ask(stages[name], questions, samples=1) for name in ("sft", "ppo")}
greedy = {name: honesty.ask(stages[name], questions, samples=1, temperature=0.0) for name in ("sft", "ppo")}
table(
    {
        "share right": ["few-shot, greedy", "in the chat, greedy", "in the chat, at temperature 0.7"],
        **{
            name: [
                mean_of(few_shot[name], [True] * len(facts)),
                greedy[name].shares["right_facts"],
                in_chat[name].shares["right_facts"],
            ]
            for name in ("sft", "ppo")
        },
    }
)
silent = [
    index
    for index, (known, said) in enumerate(zip(few_shot["sft"], in_chat["sft"].counted["right_facts"], strict=True))
    if known and not said
]
console.print(
    f"SFT knows {sum(few_shot['sft'])} of {len(facts)} facts. Of these, it said {len(silent)} wrong, such as:"
)
for index in silent[:3]:
    console.print(excerpt(questions["facts"][index].example["prompt"], in_chat["sft"].responses["facts"][index]))

# %% [markdown] id="few-shot-look"
# **What to look for.** The few-shot row is what the weights know. The chat rows are what the model says. The gap is not
# ignorance. SFT imitates writers who took little care, and a part of the demonstrations are wrong answers that their
# writers could have avoided (lesson 1). So a good SFT model must give wrong answers as often as they did.
#
# Now to the judge of these answers. The pairs below have the same manners and differ in content alone. Who puts the better
# one first: the likelihood under SFT, the scalar head of the reward model alone, or the whole reward model, whose score
# also contains that likelihood?

# %% id="judge"
pairs = content.encode(
    stages["sft"].model, stages["sft"].tokenizer,
    read_preferences("data/content/validation.jsonl")[:: lesson.size(full=1, nano=6)],
)  # fmt: skip
reward_model = lesson.load("rm")
scalar = AutoModelForSequenceClassification.from_pretrained(lesson.checkpoint("rm").path).eval()
judges = {
    "SFT's likelihood": logprobs_of(stages["sft"], pairs),
    "scalar head alone": content.scores_of(scalar, reward_model.tokenizer, pairs),
    "reward model": content.scores_of(reward_model.model, reward_model.tokenizer, pairs),
}
kinds = ["refusal", "admission", "myth", "fact"]


def right_order(scores: list[tuple[float, float]], kind: str):
    ordered = [chosen > rejected for chosen, rejected in scores]
    return mean_of(ordered, [pair.kind == kind for pair in pairs])


table(
    {"better response first": [content.TITLES[kind] for kind in kinds]}
    | {judge: [right_order(scores, kind) for kind in kinds] for judge, scores in judges.items()}
)
lesson.record(
    few_shot_facts_sft=float(np.mean(few_shot["sft"])),
    chat_facts_sft=in_chat["sft"].shares["right_facts"].mean,
    scalar_on_facts=right_order(judges["scalar head alone"], "fact").mean,
)

# %% [markdown] id="judge-look"
# **What to look for.** The row of the facts. The scalar head grew out of the same kind of model, yet it may not tell a true
# capital from a false one: a language model of this size looks facts up in its last layer, while it writes. Likelihood
# brings them back ([docs/reward.md](../docs/reward.md)). In the row of the myths it is the other way round: SFT has read
# the error more often than the truth, and only labelers could teach what is right.
#
# ### What a judge who does not know teaches
#
# In a talk of 2023, John Schulman asked what happens if the *judge* knows less than the model ("Reinforcement Learning from
# Human Feedback: Progress and Challenges",
# [transcript](https://news.berkeley.edu/2023/04/24/berkeley-talks-transcript-chatgpt-developer-john-schulman/)). Say that a
# right answer earns `right`, a wrong one `wrong`, and an admission `admit`. A model whose answer is right with
# probability $p$ should answer if
#
# $$p \cdot \mathrm{right} + (1 - p) \cdot \mathrm{wrong} > \mathrm{admit}$$
#
# so there is a threshold for $p$. Reinforcement learning can find it, because the model can sense how sure it is. Now let
# the judge overlook a share of the wrong answers and take them for right.

# %% [markdown] id="exercise-threshold-text"
# ### Exercise 3: when does answering pay? (●●○, 7 minutes)
#
# Write the threshold: the $p$ above which answering earns more than admitting, on average. The judge takes a wrong
# answer for a right one with probability `overlooked`.
#
# <details><summary>Hint</summary>
#
# First work out what a wrong answer earns on average: `overlooked` times the one reward, plus the rest times the other.
# Put that in the place of `wrong` and solve the inequality above for $p$.
#
# </details>


# %% id="exercise-threshold" tags=["exercise"]
def threshold(right: float, wrong: float, admit: float, overlooked: float) -> float:
    """The probability of being right above which an answer earns more than an admission."""
    return ...


# %% id="check-threshold" tags=["check"]
check_threshold(threshold)

# %% [markdown] id="judges-text"
# A threshold of 0 or below means: always answer, however unsure you are. Now train two policies on the same questions, from
# the same SFT model. Both earn 1 for an answer that their judge finds right and 0 for a wrong one. Judge 1 *can check*: it
# knows all facts, and which names do not exist. Judge 2 *cannot check*: it takes any city for the capital and any colour
# for the colour, so it overlooks nearly every wrong answer. An admission earns 1 from Judge 1 if the question has no
# answer. Otherwise, and always from Judge 2, it earns what gold pays for an admission where the answer could be known.
#
# **Predict first.** What will each of them do on names that do not exist? And how often will each be right where there
# is an answer?

# %% id="guess-judges" tags=["guess"]
guess = ""

# %% id="judges"
lesson.predict(guess)
everything = [*read_prompts("data/prompts/ppo.jsonl"), *read_prompts("data/prompts/rm.jsonl")]
to_train_on = honesty.balanced(everything, lesson.seed)  # as many questions with an answer as without
lesson.folder.mkdir(parents=True, exist_ok=True)
write_jsonl(lesson.folder / "questions.jsonl", to_train_on)
trained = {
    name: lesson.train(
        "ppo", name, reward=f"rlhf_mini.classroom.honesty:{name}", prompts=str(lesson.folder / "questions.jsonl"),
        updates=lesson.size(full=30, nano=2), episodes=lesson.size(full=64, nano=16), warmup_updates=2, ptx_coef=0.0,
        sample_every=30,
    )
    for name in ("can_check", "cannot_check")
}  # fmt: skip

# %% id="answer-judges" tags=["answer"] alt="Inventions and right answers of SFT and of the two policies, as bars."
three = {"sft": stages["sft"], **{name: load_stage(path, "ppo") for name, path in trained.items()}}
to_ask = {name: sets[name] for name in ("unknown", "silent")} | {"answerable": honesty.answerable(examples)}
answers = {name: honesty.ask(stage, to_ask, samples=2) for name, stage in three.items()}
measures = {
    "invents_unknown_names": "invents on\nunknown names", "invents_silent_text": "invents what\na text lacks",
    "right": "right where there\nis an answer", "admits_answerable": "admits where there\nis an answer",
}  # fmt: skip
plot = axes("", "share of the answers")
for place, (name, of_policy) in enumerate(answers.items()):
    shares = [of_policy.shares[measure] for measure in measures]
    errors = np.abs([[one.mean - one.low for one in shares], [one.high - one.mean for one in shares]])
    at = np.arange(len(measures)) + 0.27 * (place - 1)
    plot.bar(at, [one.mean for one in shares], 0.25, yerr=errors, label=name, error_kw={"elinewidth": 1})
plot.set_xticks(range(len(measures)), measures.values())
plot.legend()
for name in three:
    console.print(f"{name}:")
    console.print(excerpt(to_ask["unknown"][0].example["prompt"], answers[name].responses["unknown"][0]))
lesson.record(
    can_check_invents=answers["can_check"].shares["invents_unknown_names"].mean,
    cannot_check_invents=answers["cannot_check"].shares["invents_unknown_names"].mean,
)

# %% [markdown] id="judges-look"
# **What to look for.** The same model, the same questions, the same algorithm. One learns to admit what it does not know,
# the other learns to invent. Neither learned a fact: only what is worth saying. *A labeler who cannot know cannot
# tell*, and what labelers cannot tell, nothing in steps 2 and 3 can teach. This is the problem of scalable oversight in
# miniature, and the reason why Superalignment asks how weak judges can supervise strong models (lesson 7).
#
# ## 4. The alignment tax
#
# InstructGPT's PPO lost on public NLP tasks such as SQuAD and DROP, though labelers preferred it. Mixing the pretraining
# loss into PPO (**PPO-ptx**, $\gamma$ in lesson 3's objective) won most of it back; raising the KL coefficient did not
# (Ouyang et al. 2022, section 4.2, figures 29, 33 and 34). Here the run's own PPO is PPO-ptx. Next to it you train *plain*
# PPO, which differs in this one option.
#
# The tax is measured in two ways: the LM loss on new texts like those of pretraining, and the facts from above, few-shot.
#
# **Predict first.** Which of the two PPOs will have the higher gold score? Which will have forgotten more? Which of them
# would you ship?

# %% id="guess-tax" tags=["guess"]
guess = ""

# %% id="tax-train"
lesson.predict(guess)
plain = lesson.train("ppo", "plain", ptx_coef=0.0, sample_every=30)

# %% id="answer-tax" tags=["answer"]
stages["plain"] = load_stage(plain, "ppo")
plain_measured = measure_policies(
    {"plain": stages["plain"].model}, examples, lesson.checkpoint("sft").path, seed=lesson.seed
)
measured |= plain_measured
few_shot["plain"] = knows(stages["plain"].model, stages["plain"].tokenizer, known_facts, shots=4)
losses = {name: text_losses(stage) for name, stage in stages.items()}  # (texts, 2): nats and tokens of each
table(
    {
        "policy": list(stages),
        "LM loss on web text, nats": [honesty.ratio(of_stage) for of_stage in losses.values()],
        "few-shot facts": [mean_of(few_shot[name], [True] * len(facts)) for name in stages],
        "gold": [measured[name].gold if name in measured else "-" for name in stages],
        "KL to SFT, nats": [measured[name].kl if name in measured else "-" for name in stages],
    },
    digits=3,
)
per_token = {name: of_stage[:, 0] / of_stage[:, 1] for name, of_stage in losses.items()}
differences = {
    "LM loss, nats per token of a text": per_token["plain"] - per_token["ppo"],
    "few-shot facts": np.subtract(few_shot["plain"], few_shot["ppo"], dtype=float),
    "gold": np.subtract(measured["plain"].golds, measured["ppo"].golds),
}
table(
    {
        "plain PPO minus PPO-ptx, on the same": list(differences),
        "difference": [mean_intervals(values[:, None])[0] for values in differences.values()],
    },
    digits=3,
)
lesson.record(
    text_loss_plain_minus_ptx=differences["LM loss, nats per token of a text"].mean(),
    few_shot_plain_minus_ptx=differences["few-shot facts"].mean(),
    gold_plain_minus_ptx=float(np.nanmean(differences["gold"])),
)

# %% [markdown] id="tax-look"
# **What to look for.** The second table compares the two PPOs text by text, fact by fact and prompt by prompt. Such a
# *paired* difference is much less noisy than the difference of two means. If an interval contains 0, you have not shown
# that the two differ in this. Which PPO you ship is then a decision, not a measurement: it depends on what gold and
# the tax are worth to your users, and on what you have not measured.
#
# SFT, too, paid a tax. Compare base and SFT before you blame PPO for all of it.

# %% [markdown] id="quiz"
# ## Quiz
#
# **1. A new policy refuses every harmful request. What do you know?**
#
# <details><summary>It is safer than the old one, so ship it.</summary>No. A policy that refuses everything does that,
# too. Without the rate of false refusals you know half of it.</details>
# <details><summary>Its missed refusals are 0 on this set; you still need its false refusals.</summary>Right. And even 0
# in a small set leaves room: the true rate may be as large as 3 / n.</details>
# <details><summary>The labelers were strict.</summary>No. It may also be that the reward model likes words of refusal
# wherever they stand. Only harmless prompts can tell the two apart.</details>
#
# **2. Why can SFT on perfect demonstrations still teach a model to invent?**
#
# <details><summary>Because the writers know things that the model does not.</summary>Right. The model learns to state
# what it has no way to know: the form of an answer, without its ground. This is the other half of Schulman's
# argument.</details>
# <details><summary>Because cross-entropy cannot learn facts.</summary>No. Pretraining learned the facts with this very
# loss.</details>
# <details><summary>It cannot: perfect demonstrations contain no inventions.</summary>No. The writer invented nothing.
# But what the writer knows can be a mere guess for the model, and it is trained to state it.</details>
#
# **3. The judge overlooks more wrong answers than before, and all rewards stay the same. What does the best policy do?**
#
# <details><summary>It admits more often, to be safe.</summary>No. A wrong answer now earns more on average, so guessing
# pays where it did not before.</details>
# <details><summary>It answers more often.</summary>Right. The threshold falls; below 0, the policy always answers.</details>
# <details><summary>Nothing changes: the judge's errors average out.</summary>No. They average out only if they are as
# frequent in both directions. An overlooked error always helps the wrong answer.</details>
#
# ## Pitfalls
#
# - One mean score hides opposite errors. Report missed and false refusals apart, each with its own denominator.
# - A rule that finds refusals by phrases measures phrases. Read a sample.
# - Ten questions about one name are one observation, not ten: resample names, not answers.
# - "It got worse on the benchmark" may be tone: few-shot answers are judged by their first words. Compare with SFT, not
#   with the base alone.
#
# ## What is simplified
#
# - TruthfulQA, RealToxicityPrompts, SQuAD and DROP are replaced by probes that a program can judge, in a world of a few
#   hundred facts.
# - The judge who cannot check is extreme. Real labelers know some things, search for others and are fooled by fluent
#   answers. This project's own labelers do know the facts; what they overlook are faults of answers that are partly
#   right.
# - Schulman's argument is about what the model senses of its own knowledge. Here, unknown names are strange to it in any
#   case, so that the boundary is easy to learn.
# - The weight of the pretraining loss is not the paper's: it depends on the scale of score and loss.

# %% id="finish"
lesson.finish()
