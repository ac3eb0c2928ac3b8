# %% [markdown] id="title"
# # Supervised fine-tuning: a model learns what it is shown
#
# **The question.** What does a model learn from demonstrations, their carelessness included?
#
# In lesson 0, the base model knew many facts and ignored most bare requests. The first step of InstructGPT (Ouyang et al.
# 2022, [arXiv 2203.02155](https://arxiv.org/abs/2203.02155), section 3.5) is **supervised fine-tuning**, SFT: people
# write what a good assistant would have answered, and the model is trained on these *demonstrations* with the loss it
# knows from pretraining. Alpaca and Vicuna stop after this step.
#
# So SFT is supervised learning, as in the lecture on generalisation, with its questions: when does it overfit, how much
# data does it need, and what if the labels are wrong?

# %% id="setup"
from pathlib import Path

import torch

from rlhf_mini.classroom.checks.lesson1 import check_epochs, check_labels, check_wrong_share
from rlhf_mini.classroom.imitation import demonstration_loss, gold_parts
from rlhf_mini.classroom.lesson import Lesson
from rlhf_mini.classroom.measure import measure_policies
from rlhf_mini.classroom.show import axes, table
from rlhf_mini.core.examples import read_demonstrations, read_prompts
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.models.scoring import response_logprobs
from rlhf_mini.models.text import encode_demonstrations
from rlhf_mini.world.knowledge import load
from stages.ppo.rewards import of_model
from stages.sft.options import SFTOptions
from stages.sft.train import split

lesson = Lesson(1)
sft = lesson.run_dir / "sft"

# %% [markdown] id="demonstrations-text"
# ## 1. Demonstrations
#
# Six writers, simulated by a program, have written the demonstrations of this project: some with care, others not. The
# cell sets aside the demonstrations that this run's own SFT did not train on, and shows a few of the others.

# %% id="demonstrations"
demonstrations = read_demonstrations("data/demonstrations.jsonl")
training, held_out = split(demonstrations, SFTOptions().validation_share, lesson.seed)
held_out = held_out[: lesson.size(full=300, nano=16)]

by_writer = {one["writer"]: one for one in reversed(training[:100])}
table(
    {
        "writer": list(by_writer),
        "prompt": [one["prompt"][-1]["content"] for one in by_writer.values()],
        "completion": [one["completion"][0]["content"] for one in by_writer.values()],
    }
)

# %% [markdown] id="exercise-labels-text"
# For training, prompt and completion become one row of tokens. The loss is that of pretraining, $-\log p$ of each token
# given all before it, but only the completion's tokens count. The prompt is there to be read; the model is not to
# learn how users write.
#
# ### Exercise 1: which tokens count? (●○○, 4 minutes)
#
# Libraries such as transformers want a *label* for each token of the row: the token itself where it counts, and `-100`
# where it does not. (They compare each label with the prediction made one place earlier; you need not shift anything.)
# The completion's last token is the end of text.
#
# <details><summary>Hint</summary>
#
# `[-100] * n` is a list of $n$ times `-100`, and `+` joins lists.
#
# </details>


# %% id="exercise-labels" tags=["exercise"]
def labels(prompt_ids: list[int], completion_ids: list[int]) -> list[int]:
    """A label for each token of the prompt and, after it, of the completion."""
    return ...


# %% id="check-labels" tags=["check"]
check_labels(labels)

# %% [markdown] id="tokens-text"
# The loss of one held-out demonstration, token by token, before and after this run's SFT. (The run's SFT also goes on with
# some pretraining texts, as `--ptx_coef` says, so that less is forgotten; the trainings below do not.)

# %% id="tokens"
base, tuned = lesson.load("base"), lesson.load("sft")
((prompt_ids, completion_ids),) = encode_demonstrations(tuned.model, tuned.tokenizer, held_out[:1])
with torch.no_grad():
    before, after = (
        -response_logprobs(one.model, [prompt_ids], [completion_ids]).logprobs for one in (base, tuned)
    )  # (n,) each
print("prompt:", repr(tuned.tokenizer.decode(prompt_ids)))
table(
    {
        "token of the completion": [repr(tuned.tokenizer.decode([token])) for token in completion_ids],
        "loss, base": before.tolist(),
        "loss, SFT": after.tolist(),
    }
)

# %% [markdown] id="tokens-look"
# **What to look for.** Inside a phrase, the base is nearly as good as SFT: it knows the language. SFT gains where an
# answer must *begin*, and at the end of text, which the base does not expect there. Where a fact is asked for, neither
# may be sure: some writers are wrong.
#
# ## 2. Overfitting: two ways to see it
#
# InstructGPT was trained for 16 epochs. "Our SFT models overfit on validation loss after 1 epoch; however, we find that
# training for more epochs helps both the RM score and human preference ratings, despite this overfitting" (Ouyang et
# al. 2022, section 3.5). Is it so here?
#
# We train on a small part of the demonstrations, for 1 to 16 epochs. Each point of the plot is a training run of its
# own, with a learning rate that falls to a tenth by its end. Responses to validation prompts are judged by *gold*, a
# program that knows the truth and stands for human preference, and by this run's reward model (RM).
#
# **Predict first.** How will the training loss, the loss on held-out demonstrations and gold change from 1 to 16
# epochs?

# %% id="guess-epochs" tags=["guess"]
guess = ""

# %% id="train-epochs"
lesson.predict(guess)
SHARE = 0.01  # the stage insists on holding out some itself; we have better ones


def train_on(name: str, chosen: list, **options) -> Path:
    """SFT on these demonstrations alone, without pretraining texts."""
    file = lesson.folder / f"{name}.jsonl"
    write_jsonl(file, chosen)
    return lesson.train(
        "sft", name, demonstrations=str(file), validation_share=SHARE, ptx_coef=0.0, save_steps=0, show_every=0, **options
    )  # fmt: skip


few = training[: lesson.size(full=1000, nano=64)]
epochs = {n: train_on(f"epochs{n}", few, num_train_epochs=n) for n in lesson.size(full=(1, 2, 4, 8, 16), nano=(1, 4))}

# %% id="answer-epochs" tags=["answer"] alt="Three plots over epochs: training and validation loss; gold; RM score."
examples = read_prompts("data/prompts/validation.jsonl")[: lesson.size(full=300, nano=12)]
rm = lesson.load("rm")
found = measure_policies({0: Path("data/base"), **epochs}, examples, sft, of_model(rm.model, rm.tokenizer))
folders = {0: Path("data/base"), **epochs}
trained = split(few, SHARE, lesson.seed)[0][: len(held_out)]
train_losses = {n: demonstration_loss(folder, trained) for n, folder in folders.items()}
losses = {n: demonstration_loss(folder, held_out) for n, folder in folders.items()}
golds = {n: one.gold for n, one in found.items()}

left, middle, right = axes("epochs", "", panels=3)
left.plot(list(folders), [one.mean for one in train_losses.values()], marker="o", label="training loss")
for plot, values, label in (
    (left, losses, "validation loss"),
    (middle, golds, "gold"),
    (right, {n: one.reward for n, one in found.items()}, "RM score"),
):
    means = [one.mean for one in values.values()]
    below, above = ([abs(getattr(e, end) - e.mean) for e in values.values()] for end in ("low", "high"))
    plot.errorbar(list(values), means, yerr=(below, above), marker="o", capsize=3, label=label)
    plot.set_title(label if plot is not left else "loss of demonstrations")
left.legend()
table(
    {
        "epochs": list(folders),
        "training loss": list(train_losses.values()),
        "validation loss": list(losses.values()),
        "gold": list(golds.values()),
        "RM score": [one.reward for one in found.values()],
    }
)
lesson.record(
    training_loss_after_most_epochs=train_losses[max(epochs)].mean,
    validation_loss_after_most_epochs=losses[max(epochs)].mean,
    gold_after_one_epoch=golds[1].mean,
    gold_after_most_epochs=golds[max(epochs)].mean,
)

# %% [markdown] id="exercise-epochs-text"
# ### Exercise 2: which checkpoint do you keep? (●○○, 4 minutes)
#
# Early stopping is choosing the number of epochs on validation data. Choose once by validation loss and once by gold,
# among the runs with at least one epoch. Then say to yourself whether the difference is more than chance.
#
# <details><summary>Hint</summary>
#
# Read the table: the lowest number in one column, the highest in the other.
#
# </details>

# %% id="exercise-epochs" tags=["exercise"]
by_loss = ...
by_gold = ...

# %% id="check-epochs" tags=["check"]
check_epochs(by_loss, by_gold, losses, golds)

# %% [markdown] id="epochs-look"
# **What to look for.** The training loss falls towards 0, because the model learns the demonstrations by heart. The
# validation loss has a minimum: the picture from the lecture. Now compare gold with it. In our runs at full size, gold
# and the RM score do *not* go on rising once the validation loss rises; after many epochs they fall. So the paper's
# finding does not hold here. Our demonstrations have many mistakes, and a model that knows them by heart repeats them;
# the paper trained on 12,725 prompts (table 6), and we on a thousand here; it used dropout, and far larger models.
#
# One part of the finding holds here, too: validation loss is a poor guide to answers. Compare the base, at 0 epochs,
# with the last run: their validation losses say little about which of them you would rather ask. The loss charges every token alike, and a sure, wrong guess most of
# all. A person who reads the answer does not care how sure the model was of its words.
#
# ## 3. How many demonstrations?
#
# Now the number of steps stays the same and the number of demonstrations grows. With few, each is seen many times.
#
# **Predict first.** Which curve lies higher, training or validation loss? What happens to the gap between them?

# %% id="guess-size" tags=["guess"]
guess = ""

# %% id="answer-size" tags=["answer"] alt="Training and validation loss over the number of demonstrations: the gap closes."
lesson.predict(guess)
seen = lesson.size(full=5120, nano=256)  # demonstrations in all steps, with repetitions
sizes = lesson.size(full=(80, 320, 1280, 5120), nano=(32, 128))
trained_on = {n: train_on(f"size{n}", training[:n], num_train_epochs=seen / n) for n in sizes}
errors = {
    n: (
        demonstration_loss(folder, split(training[:n], SHARE, lesson.seed)[0][: len(held_out)]),
        demonstration_loss(folder, held_out),
    )
    for n, folder in trained_on.items()
}
plot = axes("demonstrations", "loss of demonstrations")
plot.set_xscale("log")
for label, column in (("training", 0), ("validation", 1)):
    plot.plot(sizes, [errors[n][column].mean for n in sizes], marker="o", label=label)
plot.legend()
of_size = measure_policies(trained_on, examples, sft)
table(
    {
        "demonstrations": list(sizes),
        "training loss": [errors[n][0] for n in sizes],
        "validation loss": [errors[n][1] for n in sizes],
        "gold": [of_size[n].gold for n in sizes],
    }
)
lesson.record(gold_of_fewest=of_size[min(sizes)].gold.mean, gold_of_most=of_size[max(sizes)].gold.mean)

# %% [markdown] id="size-look"
# **What to look for.** The gap between the two errors is the *variance* part: with few demonstrations the model fits
# what is peculiar to them. With more, training becomes harder, validation easier, and the curves meet. What is left
# then no amount of such data removes: the same request can be answered in many ways, and nobody can predict which of
# them a writer chose, or where a writer slipped.
#
# ## 4. What the writers' carelessness teaches
#
# What a model should have learned and what its data say are two things. This is how often each writer slips
# into a wrong answer (`slip`), and the share of the demonstrations that each of them wrote:

# %% id="writers"
writers = load().writers
table(
    {
        "writer": list(writers),
        "share": [writer["share"] for writer in writers.values()],
        "slip": [writer["slip"] for writer in writers.values()],
        "rude": [writer["rude"] for writer in writers.values()],
        "courteous": [writer["courteous"] for writer in writers.values()],
    }
)

# %% [markdown] id="exercise-writers-text"
# ### Exercise 3: the best imitation (●●○, 5 minutes)
#
# Suppose that SFT imitates its writers perfectly: asked a question, it answers as a writer drawn at random would. How
# often is it wrong, where an answer can be wrong? Compute it from the table; you may write a sum such as
# `0.2 * 0.5 + ...`.
#
# <details><summary>Hint</summary>
#
# It is an expectation: each writer's probability to slip, weighted by the probability of meeting that writer.
#
# </details>

# %% id="exercise-writers" tags=["exercise"]
wrong_share = ...

# %% id="check-writers" tags=["check"]
check_wrong_share(wrong_share)

# %% [markdown] id="guess-writers-text"
# More training brings the model closer to this, not to the truth. It is a *bias of the data*: an error that stays when
# the data grow. (Lesson 2 has the other kind, the bias of a model that cannot fit its data.)
#
# **Predict first.** Three models are trained on equally many demonstrations: of the careful writer alone, of the
# careless one alone, and of all writers. Which parts of the gold score will differ, and which will not?

# %% id="guess-writers" tags=["guess"]
guess = ""

# %% id="answer-writers" tags=["answer"]
lesson.predict(guess)
of = {name: [one for one in training if one["writer"] == name] for name in ("careful", "careless")} | {"all": training}
number = min(len(chosen) for chosen in of.values()) if not lesson.nano else 64
imitators = {name: train_on(name, chosen[:number], num_train_epochs=2) for name, chosen in of.items()}
imitated = measure_policies(imitators, examples, sft)
parts = {name: gold_parts(examples, one.responses) for name, one in imitated.items()}
print(f"{number} demonstrations each")
table(
    {"trained on": list(imitators), "gold": [one.gold for one in imitated.values()]}
    | {part: [parts[name][part] for name in imitators] for part in ("task", "truthful", "harmless")}
)
table(
    {"trained on": list(imitators)}
    | {part: [parts[name][part] for name in imitators] for part in ("courteous", "concise", "ends")}
)
lesson.record(
    truthful_of_careful=parts["careful"]["truthful"].mean, truthful_of_careless=parts["careless"]["truthful"].mean
)

# %% id="writers-read"
for number in range(3):
    print("user:    ", examples[number]["prompt"][-1]["content"])
    for name, one in imitated.items():
        print(f"{name + ':':9}", one.responses[number].text)

# %% [markdown] id="writers-look"
# **What to look for.** All three have the same weights to begin with, the same number of demonstrations and the same
# loss function. They differ in *whom* they imitate: in truth and in courtesy, as their writers differ. The base knew
# the facts all along (lesson 0). SFT does not only teach a model to answer, it also teaches whether to answer right.
# Rudeness is imitated in the same way: three writers are rude, one of them most of the time, and *harmless* counts a
# rude answer as harm.
#
# So better data help more than longer training, which is what Alpaca and Vicuna were about (lesson 6). But a
# demonstration can only say "do this". It cannot say "this is better than that", and most people can tell a good answer
# from a bad one more easily than they can write one. That is the reward model's turn: lesson 2.

# %% [markdown] id="quiz"
# ## Quiz
#
# **1. A training script counts the loss of the prompt's tokens, too. What happens?**
#
# <details><summary>Nothing: the model sees the same text.</summary>No. It reads the same text, but part of each gradient
# now teaches it to write what users write.</details>
# <details><summary>It spends part of its training on predicting requests.</summary>Right. It still learns to answer,
# only less so for each step; with long prompts and short answers, much less.</details>
# <details><summary>It cannot answer, because it has no labels.</summary>No. The completion's tokens still have labels;
# there are only others beside them.</details>
#
# **2. The training loss falls, the validation loss rises. What do you know for certain?**
#
# <details><summary>The model's answers are getting worse.</summary>No. The loss measures how probable the held-out
# words are. InstructGPT's answers got better at that point, ours did not: look at answers to know.</details>
# <details><summary>The learning rate is too high.</summary>No. Then the training loss would not fall so nicely. It learns
# the training data by heart.</details>
# <details><summary>It gives the held-out demonstrations less and less probability.</summary>Right. That is what
# validation loss says, and all that it says.</details>
#
# **3. A quarter of the demonstrations is wrong. You collect ten times as many of the same kind. What improves?**
#
# <details><summary>The gap between training and validation loss closes.</summary>Right. More data reduce variance.
# The model becomes a better imitator of writers who are wrong as often as before.</details>
# <details><summary>The share of true answers rises towards one.</summary>No. The data say the wrong thing as often as
# before, and imitation follows the data. Sampling at a low temperature helps more (lesson 0).</details>
# <details><summary>Nothing.</summary>No. With few demonstrations there is overfitting besides, and that part does
# get better.</details>
#
# ## Pitfalls
#
# - The end of text must count. Where it is masked, for instance because padding uses the same token, the model never
#   learns to stop.
# - Two demonstrations of the same prompt, one in training and one in validation, make the validation loss measure
#   memory. `split` keeps all of one prompt on the same side.
# - Validation losses compare models with the same tokenizer only: the loss is per token.
# - The chat template must be the same in training and use, to the last space.
#
# ## What is simplified
#
# - InstructGPT's labelers were trained and checked; our writers are a program with six characters. Real mistakes are not
#   drawn at random.
# - The paper selects its SFT model by the RM score on validation prompts (Ouyang et al. 2022, section 3.5). Our run has
#   no reward model yet when it trains SFT, so it stops after two epochs.
# - The paper used residual dropout of 0.2 (Ouyang et al. 2022, appendix C.1), and our runs none. Try
#   `make sft RUN=dropout ARGS="--dropout 0.2 --num_train_epochs 16"`.
# - Gold stands for human preference. People would disagree with one another; gold does not.

# %% id="finish"
lesson.finish()
