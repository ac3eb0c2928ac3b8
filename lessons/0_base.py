# %% [markdown] id="title"
# # A language model continues; it does not obey
#
# **The question.** What does a language model do before anybody aligns it?
#
# GPT-3 (Brown et al. 2020, [arXiv 2005.14165](https://arxiv.org/abs/2005.14165)) was trained for one thing: to predict
# the next token of texts from the web. InstructGPT, ChatGPT and all the others begin with such a *base model*. This
# lesson looks at ours, a GPT-2 with a million parameters that has read a small, made-up web. You will sample from it
# token by token, make it hotter and colder, and get facts out of it with examples in the prompt. Then you will ask it
# for something, and see why lesson 1 is needed.

# %% id="setup"
from pathlib import Path

import torch

from rlhf_mini.classroom.checks.lesson0 import check_draw, check_few_shot, check_softmax
from rlhf_mini.classroom.continuation import (
    FORMATS,
    continue_texts,
    estimate,
    facts_right,
    few_shot_texts,
    first_answer,
    opening,
    openings,
)
from rlhf_mini.classroom.lesson import Lesson
from rlhf_mini.classroom.measure import measure_policies
from rlhf_mini.classroom.show import axes, table
from rlhf_mini.core.examples import read_prompts
from rlhf_mini.core.files import read_jsonl
from rlhf_mini.evaluation.diversity import SAMPLES, distinct
from rlhf_mini.evaluation.probes import text_losses
from rlhf_mini.evaluation.responses import gold_of
from rlhf_mini.models.sampling import draw
from rlhf_mini.models.scoring import response_logprobs
from rlhf_mini.models.text import encode_plain, encode_texts
from rlhf_mini.world.corpus import WRONG_FACTS, documents
from rlhf_mini.world.knowledge import load

lesson = Lesson(0)
base = lesson.load("base")

# %% [markdown] id="web-text"
# ## 1. What it has learned: the loss
#
# The base has read documents such as these, one after another, each token once. Before each token it gives a
# probability to every token of its vocabulary. The **loss** is the mean of $-\log p(\text{the token that came})$, in
# nats. Its exponential, the **perplexity**, is easier to picture: a model with perplexity $k$ is as unsure as one that
# chooses among $k$ equally likely tokens.

# %% id="web"
web = documents(seed=99)  # drawn as the training texts were, with another seed
for _ in range(3):
    print(next(web), end="\n\n")

# %% [markdown] id="loss-text"
# **Predict first.** An untrained model gives every token of the vocabulary the same chance. What loss does that give,
# and how far down does a million parameters bring it: to a tenth of it, a half, nearly all of it?

# %% id="guess-loss" tags=["guess"]
guess = ""

# %% id="answer-loss" tags=["answer"] alt="Loss of the base in pretraining: it falls fast at first, then ever more slowly."
lesson.predict(guess)
log = read_jsonl(Path("data/base/metrics.jsonl"))
nothing_known = torch.tensor(base.model.config.vocab_size).log().item()
plot = axes("training step", "loss, nats per token")
plot.plot([line["step"] for line in log], [line["loss"] for line in log])
plot.axhline(nothing_known, linestyle="--", color="grey", label="all tokens equally likely")
plot.legend()
nats, tokens = text_losses(base).sum(0)  # of texts that it has not read
table(
    {
        "": ["all tokens equally likely", "base, on texts that it has not read"],
        "loss": [nothing_known, nats / tokens],
        "perplexity": [float(base.model.config.vocab_size), torch.tensor(nats / tokens).exp().item()],
    }
)

# %% [markdown] id="loss-look"
# **What to look for.** The curve falls fast, then ever more slowly. Each text was read once, so even the training loss
# is one on texts that the model has not seen before: there is no gap between training and test to worry about, and the
# two figures agree. Large models show the same: on logarithmic axes, loss against compute is nearly a straight line
# (Brown et al. 2020, figure 3.1). It cannot fall to 0. Who comes next in a story is chance, and no model can know.
#
# A low loss says: it knows how the web goes on. It does not say: it does what you want.
#
# ## 2. One token at a time
#
# The model gives one *logit* per token of the vocabulary. The softmax makes probabilities of them, and one token is
# drawn. It is appended to the text, and the model reads the longer text. That is all there is to "generation".

# %% id="next"
text = "Question: What is the opposite of hot?\nAnswer:"
(ids,) = encode_plain(base.tokenizer, [text])
logits = base.model(torch.tensor([ids])).logits[0, -1].detach()  # (V,)
best = logits.softmax(-1).topk(5)
table({"next token": [repr(base.tokenizer.decode([i])) for i in best.indices], "probability": best.values.tolist()}, 3)

# %% [markdown] id="exercise-softmax-text"
# ### Exercise 1: softmax with a temperature (●○○, 4 minutes)
#
# A **temperature** $T$ divides the logits $z$ before the softmax:
#
# $$p_i = \frac{e^{z_i / T}}{\sum_j e^{z_j / T}}$$
#
# Write it. The check also tries large logits.
#
# <details><summary>Hint</summary>
#
# `logits.softmax(-1)` is the softmax itself, and it survives large logits. If you write it with `.exp()`, subtract the
# largest logit first: that changes no probability.
#
# </details>


# %% id="exercise-softmax" tags=["exercise"]
def softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Probabilities (V,) of the next token."""
    return ...


# %% id="check-softmax" tags=["check"]
check_softmax(softmax)

# %% [markdown] id="exercise-draw-text"
# ### Exercise 2: draw a token (●●○, 6 minutes)
#
# A computer gives you a number $u$, uniform between 0 and 1. How do you make of it a token with the right
# probabilities? Lay the probabilities end to end on the line from 0 to 1, and take the token on whose piece $u$ falls:
# the first token whose *cumulative* probability is above $u$.
#
# <details><summary>Hint</summary>
#
# `probabilities.cumsum(-1)` gives the right ends of the pieces. How many of them are at most $u$? That number is the
# index of the token.
#
# </details>


# %% id="exercise-draw" tags=["exercise"]
def draw_token(probabilities: torch.Tensor, u: float) -> int:
    """The index of the token on whose piece of the line from 0 to 1 `u` falls."""
    return ...


# %% id="check-draw" tags=["check"]
check_draw(draw_token)

# %% [markdown] id="steps-text"
# Now the loop, with the project's own `draw`. Change the seed and run the cell again: another story.

# %% id="steps"
generator = torch.Generator().manual_seed(lesson.seed)
(ids,) = encode_plain(base.tokenizer, ["The fox and the lamp\n"])
rows = {"u": [], "drawn": [], "its probability": [], "most likely": [], "probability of that": []}
for _ in range(10):
    logits = base.model(torch.tensor([ids])).logits[:, -1].detach()  # (1, V)
    u = torch.rand(1, generator=generator)  # (1,)
    token, p = draw(logits, u).item(), logits.softmax(-1)[0]
    first = int(p.argmax())
    for name, value in zip(rows, (u.item(), token, p[token].item(), first, p[first].item()), strict=True):
        rows[name].append(repr(base.tokenizer.decode([value])) if isinstance(value, int) else value)
    ids.append(token)
table(rows)
print(base.tokenizer.decode(ids))

# %% [markdown] id="steps-look"
# **What to look for.** At some steps one token has nearly all the probability: grammar, or the second half of a word.
# At others the model is open, and $u$ decides: these are the forks of the story. What has been drawn cannot be taken
# back. If the draw is bad, the model goes on from there as well as it can.
#
# ## 3. Temperature
#
# At $T \to 0$ the likeliest token always wins (*greedy* decoding). At $T = 1$ the model speaks as the web does, and
# above, rare tokens come up more often.
#
# We measure four things: the **entropy** of the next token, in nats; the share of **facts** answered right in a quiz,
# after one example; how many of 16 **different** continuations the title of a story gets; and how many of the sentences
# in long continuations have been said **before**, in the same text.
#
# **Predict first.** The web corpus gets facts wrong at times (the cell prints how often). So is the base right more
# often at $T = 1$ or at $T = 0$, and why?

# %% id="guess-temperature" tags=["guess"]
guess = ""

# %% id="answer-temperature" tags=["answer"]
lesson.predict(guess)
everything = list(load().facts.values())
facts = everything[:: len(everything) // lesson.size(full=200, nano=20)]
titles = ["The fox and the lamp\n", "The king and the boat\n", "The owl and the drum\n", "The nurse and the kite\n"]
titles = titles[: lesson.size(full=4, nano=1)]
texts = encode_texts(base.model, base.tokenizer, [next(web) for _ in range(lesson.size(full=100, nano=8))])
temperatures = (0.0, 0.2, 0.5, 0.7, 1.0, 1.5, 2.0)
measured = {"T": temperatures, "entropy": [], "facts right": [], f"different of {SAMPLES}": [], "said before": []}
for temperature in temperatures:
    known = facts_right(base, facts, shots=1, temperature=temperature, seed=lesson.seed)
    stories = continue_texts(base, [one for one in titles for _ in range(SAMPLES)], 40, temperature, lesson.seed)
    long = continue_texts(base, ["Homework\n"] * lesson.size(full=32, nano=4), 150, temperature, lesson.seed)
    lines = [one.text.split("\n") for one in long]
    if temperature:
        entropy = response_logprobs(base.model, [t[:1] for t in texts], [t[1:] for t in texts], temperature).entropy
    measured["entropy"].append(entropy.mean().item() if temperature else 0.0)
    measured["facts right"].append(estimate(known))
    measured[f"different of {SAMPLES}"].append(estimate(distinct(stories)).mean)
    measured["said before"].append(
        estimate(line in before[:i] for before in lines for i, line in enumerate(before)).mean
    )
print(f"Statements about facts on the web that are wrong: {WRONG_FACTS:.0%}")
table(measured)
for temperature in (0.0, 1.0, 2.0):
    print(
        f"T = {temperature:g}:",
        continue_texts(base, titles[:1], 40, temperature, lesson.seed)[0].text.replace("\n", " / "),
    )
lesson.record(
    facts_right_at_temperature_1=measured["facts right"][temperatures.index(1.0)].mean,
    facts_right_at_temperature_2=measured["facts right"][temperatures.index(2.0)].mean,
)

# %% [markdown] id="temperature-look"
# **What to look for.** Entropy grows with the temperature. At $T = 1$ the base answers as the web does, its errors
# included, and adds a few of its own: it has learned *how often* each answer is given, right ones and wrong ones.
# Greedy decoding takes the commonest answer, and since most people on the web are right about a fact, it is right
# nearly always. That is a
# majority vote, and it fails where the majority errs: on popular misconceptions, which the web repeats more often than
# the truth. Above 1, facts fall apart first and grammar next.
#
# The price of a low temperature is in the other columns: at 0 one and the same story each time, at 0.2 hardly more.
# There is no best temperature; for facts choose a low one, for stories a higher one. This project samples responses at
# 0.7.
#
# ## 4. Few-shot: programming by examples
#
# The title of the GPT-3 paper is "Language Models are Few-Shot Learners". **Zero-shot** means asking; **few-shot**
# means putting $k$ solved examples in front of the question. No weight changes: the examples only change what the model
# reads.

# %% [markdown] id="exercise-few-shot-text"
# ### Exercise 3: a few-shot prompt (●●○, 6 minutes)
#
# Write a text that makes the base answer a question. You get the question and two examples, each a question with its
# answer, such as `("What is the capital of Peru?", "Lima")`. End it where the model shall begin. Without examples, your
# function must work as well. The check tries it on facts, with the two examples and with none.
#
# Look at the documents of section 1 for a format. Does it matter which you take?
#
# <details><summary>Hint</summary>
#
# Quizzes on this web look like `Question: ...` and, on the next line, `Answer: ...`. Build each example as
# `f"Question: {q}\nAnswer: {a}."`, join them with new lines, and end with `Answer:`, without a space after it.
#
# </details>


# %% id="exercise-few-shot" tags=["exercise"]
def few_shot_prompt(question: str, examples: list[tuple[str, str]]) -> str:
    """The text that the base is to continue with the answer."""
    return ...


# %% id="check-few-shot" tags=["check"]
check_few_shot(few_shot_prompt, base)

# %% [markdown] id="formats-text"
# Three formats, each with the two examples and the question. `quiz` and `lines` occur on this web, `pairs` never:

# %% id="formats"
for form in FORMATS:
    print(f"--- {form}", few_shot_texts(base, everything[1:2], form, shots=2, seed=lesson.seed)[0], sep="\n")

# %% [markdown] id="guess-few-shot-text"
# **Predict first.** For each format: what will more examples do to the share of right answers?

# %% id="guess-few-shot" tags=["guess"]
guess = ""

# %% id="answer-few-shot" tags=["answer"] alt="Facts right over the number of examples, for three formats, with intervals."
lesson.predict(guess)
shots = (0, 1, 2, 4, 8)
plot = axes("examples in the prompt", "facts right")
shares = {}
for form in FORMATS:
    shares[form] = [estimate(facts_right(base, facts, form, k, seed=lesson.seed)) for k in shots]
    below, above = ([abs(getattr(one, end) - one.mean) for one in shares[form]] for end in ("low", "high"))
    plot.errorbar(shots, [one.mean for one in shares[form]], yerr=(below, above), marker="o", capsize=3, label=form)
plot.legend()
table({"examples": list(shots), **shares})
lesson.record(
    quiz_zero_shot=shares["quiz"][0].mean,
    quiz_four_shot=shares["quiz"][3].mean,
    lines_zero_shot=shares["lines"][0].mean,
)

# %% [markdown] id="few-shot-look"
# **What to look for.** In a quiz, the first example helps, and the others add little. It shows that this is a quiz with
# short answers, so the model stops guessing what kind of document it is in. Among `lines`, examples can even do harm:
# the more lines without a label, the more the text looks like one of the web's lists of questions, and such a list goes
# on with a question. And `pairs`, from which you see at once what is wanted, it does not understand at all.
#
# Brown et al. (2020, figure 1.2) found that the larger the model, the more it makes of its examples; in their smallest
# models, they hardly help. Ours is a hundred times smaller than the smallest of these (125 million parameters, table
# 2.1). It does not learn a new task from examples. Examples help it to *recognise* a document that it knows.
#
# ## 5. An instruction is just another text
#
# Now we ask for something: real requests, from the validation prompts of this project. We try three ways: the bare
# request and a new line; the request as a question of a quiz; and as an exercise of a worksheet, of which this web has
# many. For comparison, SFT gets the bare request, as a chat: the model of lesson 1, trained to answer. **Gold** is a
# program that judges whether an answer does what was asked, is true, and so on: 0 is useless, 1 perfect.
#
# **Predict first.** What will the base do with a bare request? Which way of asking comes nearest to SFT?

# %% id="guess-instructions" tags=["guess"]
guess = ""

# %% id="answer-instructions" tags=["answer"]
lesson.predict(guess)
examples = read_prompts("data/prompts/validation.jsonl")[: lesson.size(full=300, nano=16)]
known_openings = openings(p for name in ("rm", "ppo") for p in read_prompts(f"data/prompts/{name}.jsonl"))
ways = {"bare": "{}\n", "quiz": "Question: {}\nAnswer:", "worksheet": "Exercise: {}\nSolution:"}
answers = {
    way: [
        first_answer(one)
        for one in continue_texts(
            base, [form.format(e["prompt"][-1]["content"]) for e in examples], 48, 0.7, lesson.seed
        )
    ]
    for way, form in ways.items()
}
sft = lesson.run_dir / "sft"
answers["SFT"] = measure_policies({"sft": sft}, examples, sft, seed=lesson.seed)["sft"].responses
asks = {way: [opening(one.text) in known_openings for one in of_way] for way, of_way in answers.items()}
golds = {
    way: estimate(gold_of(e, one).score for e, one in zip(examples, of_way, strict=True))
    for way, of_way in answers.items()
}
table(
    {
        "asked": list(answers),
        "begins like a request": [estimate(of_way) for of_way in asks.values()],
        "gold": list(golds.values()),
    }
)
for number in range(3):
    print("\nrequest:  ", examples[number]["prompt"][-1]["content"])
    for way, of_way in answers.items():
        print(f"{way + ':':10}", of_way[number].text.replace("\n", " / "))
lesson.record(
    requests_after_requests=estimate(asks["bare"]).mean,
    gold_bare=golds["bare"].mean,
    gold_worksheet=golds["worksheet"].mean,
    gold_sft=golds["SFT"].mean,
)

# %% [markdown] id="instructions-look"
# **What to look for.** After a bare request, the base mostly writes another request, as in the web's lists of homework.
# It does not *refuse* to answer; it continues. ("Begins like a request" is a rule of thumb: the first two words are
# those of some request.) The same model, asked in the form of a worksheet, answers nearly as well as SFT does. The
# knowledge was there. What was missing was the right document around the request.
#
# That is the gap which "alignment" first meant: a model that predicts the web and a user who wants help have different
# aims (Ouyang et al. 2022, section 1). With GPT-3, users closed it by writing prompts. The InstructGPT paper therefore
# compares with a prompted GPT-3, too, and not only with the bare one. SFT makes the bare request enough.

# %% [markdown] id="quiz"
# ## Quiz
#
# **1. Asked for the capital of a country, a base model answers with another question. Why?**
#
# <details><summary>It does not know the capital.</summary>No. In a quiz it gives the capital. What it lacks is not the
# fact.</details>
# <details><summary>In the texts that it has read, questions often follow questions.</summary>Right. It continues the
# document that it takes this for.</details>
# <details><summary>Its temperature is too high.</summary>No. Greedy decoding only picks the likeliest continuation,
# and after a bare question that is often no answer (`lines` without examples, in section 4).</details>
#
# **2. On a web where one statement in seven is false, a model has learned the texts perfectly. How often is it right at
# temperature 1?**
#
# <details><summary>Always, because it is perfect.</summary>No. It is perfect at predicting the web, and the web errs.
# Truth is not in the loss.</details>
# <details><summary>Six times in seven.</summary>Right. It gives each answer as often as the web does. A low temperature
# turns this into a majority vote.</details>
# <details><summary>Never, because errors add up.</summary>No. Each question is a draw of its own.</details>
#
# **3. A few-shot prompt raises the share of right answers. What has the model learned from the examples?**
#
# <details><summary>New facts: training on them has changed its weights.</summary>No. No weight changes; delete the
# examples, and the effect is gone.</details>
# <details><summary>The answers, which it copies from the examples.</summary>No. Our examples were about other kinds of
# facts, so there was no answer to copy.</details>
# <details><summary>Which kind of text this is, and where its answers stand.</summary>Right. Here, that is all. Very
# large models also pick up tasks that are new to them.</details>
#
# ## Pitfalls
#
# - A space at the end of a prompt: the model's words begin with their space, so after `Answer: ` the likely tokens do
#   not fit any more.
# - Perplexities of models with different tokenizers cannot be compared: the loss is per token.
# - Temperature 0 is not "the most probable text". It takes the best token at each step, and may miss a better sentence.
# - A few-shot result depends on the format and on the examples drawn. Report which, and an interval.
#
# ## What is simplified
#
# - The web is made up, with a few hundred facts and sixteen kinds of documents. GPT-3's smallest model has 125 million
#   parameters, its largest 175 billion (Brown et al. 2020, table 2.1), ours one million.
# - Brown et al. measure on dozens of known tasks; we measure facts in three formats.
# - For a base model we cut the continuation where the next label begins, such as "Question:". Users of GPT-3 did the
#   same with stop sequences.

# %% id="finish"
lesson.finish()
