# %% [markdown] id="title"
# # Beyond PPO
#
# **The question.** PPO needs four models and many details. Is all of that needed? And who gives the feedback when
# people are too slow, too expensive, or know less than the model?
#
# In lessons 2 and 3, a reward model learned from rankings, and PPO maximised it. In this lesson the same SFT model
# learns from the same data by other methods, each through the trainer of [TRL](https://huggingface.co/docs/trl), the
# library that is used most:
#
# | method | learns from | reward model | value model | samples while it learns |
# |---|---|---|---|---|
# | PPO ([Schulman et al. 2017](https://arxiv.org/abs/1707.06347)) | scores | yes, or a program | yes | yes |
# | DPO ([Rafailov et al. 2023](https://arxiv.org/abs/2305.18290)) | pairs | no | no | no |
# | KTO ([Ethayarajh et al. 2024](https://arxiv.org/abs/2402.01306)) | thumbs up or down | no | no | no |
# | RLOO ([Ahmadian et al. 2024](https://arxiv.org/abs/2402.14740)) | scores | yes, or a program | no | yes |
# | GRPO ([Shao et al. 2024](https://arxiv.org/abs/2402.03300)) | scores | yes, or a program | no | yes |
#
# Then the feedback itself changes: a program that checks answers, written principles (such as Claude's constitution), and
# finally a small model that teaches a larger one (Superalignment).

# %% id="setup"
import torch

from rlhf_mini.classroom import beyond, weak
from rlhf_mini.classroom.checks.lesson7 import check_advantages, check_dpo, check_principles
from rlhf_mini.classroom.feedback import CONSTITUTION, Constitution
from rlhf_mini.classroom.lesson import Lesson
from rlhf_mini.classroom.measure import measure_policies
from rlhf_mini.classroom.show import axes, table
from rlhf_mini.core.examples import read_prompts, read_rankings
from rlhf_mini.core.rankings import Count, agreement, load_labelers
from stages.ppo.rewards import of_model
from stages.rm.options import RMOptions
from stages.rm.rankings import as_responses

lesson = Lesson(7)

# %% [markdown] id="kl-text"
# ## 1. How far may a method go?
#
# Whoever goes further from SFT usually earns more reward, until over-optimisation sets in (lesson 3). So a method that
# "beats PPO" may only have gone further. We compare all methods **at the same KL to SFT**: that of this run's PPO. During
# training the policy answers validation prompts every few steps. Its KL is estimated on these answers, and training
# stops at the target.
#
# First, PPO itself:

# %% id="target"
options = lesson.size(
    full=beyond.BeyondOptions(seed=lesson.seed),
    nano=beyond.BeyondOptions(seed=lesson.seed, steps=3, every=3, prompts=12, pairs=8, samples=16, max_new_tokens=12),
)
meter = beyond.Meter(lesson.run_dir, options)
ppo, sft = lesson.load("ppo").model, lesson.load("sft").model
start, goal = meter.measure(sft), meter.measure(ppo)
target = goal.kl
table({"": ["SFT", "PPO"], "KL to SFT": [start.kl, goal.kl], "gold": [start.gold, goal.gold]})
lesson.record(target_kl=target)

# %% [markdown] id="dpo-text"
# ## 2. DPO and KTO: no reward model, no sampling
#
# The policy that maximises a reward under a KL penalty is known in closed form. DPO turns that formula round: every
# policy $\pi$ *is* the best one for some reward, namely
#
# $$\hat r(x, y) = \beta \log \frac{\pi(y|x)}{\pi^{\mathrm{SFT}}(y|x)}$$
#
# So put this reward into the reward model's own loss (lesson 2), and train the policy directly on pairs of a chosen
# response $y_w$ and a rejected one $y_l$ (Rafailov et al. 2023, equation 7):
#
# $$L = -\log \sigma\left( \hat r(x, y_w) - \hat r(x, y_l) \right)$$

# %% [markdown] id="exercise-dpo-text"
# ### Exercise 1: DPO's loss (●●○, 6 minutes)
#
# You get the log-probability of each whole response, under the policy and under SFT. Write the loss of each pair.
#
# <details><summary>Hint</summary>
#
# `torch.nn.functional.logsigmoid` is log σ. A log of a quotient is a difference of logs. Before the first step the
# policy is SFT: then both rewards are 0, and every loss is log 2.
#
# </details>


# %% id="exercise-dpo" tags=["exercise"]
def dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, sft_chosen: torch.Tensor, sft_rejected: torch.Tensor, beta: float
) -> torch.Tensor:
    """The losses (B,) of B pairs, from log-probabilities (B,) of responses under the policy and under SFT."""
    return ...


# %% id="check-dpo" tags=["check"]
check_dpo(dpo_loss)

# %% [markdown] id="kto-text"
# KTO needs no pairs. Each response alone has a thumb up or down, as from a button under an answer. It pushes
# $\hat r$ of a good response above a reference point and that of a bad one below it; the reference point is an estimate
# of the KL so far. Here KTO gets DPO's pairs torn apart.
#
# Both learn from this run's rankings of SFT's own responses, those that the reward model was trained on.

# %% id="dpo"
policies = {"SFT": sft, "PPO": ppo}
trained = {}
for method in ("dpo", "kto"):
    trained[method] = beyond.train(method, lesson.run_dir, lesson.folder, target, options)
    at = trained[method].at
    print(f"{method}: {at.step} steps in {trained[method].seconds:.0f} s, KL {at.kl:.2f}")

# %% [markdown] id="group-text"
# ## 3. RLOO and GRPO: no value model
#
# PPO's value model answers one question: was this response better than expected? There is a simpler way to know.
# Sample several responses to the *same* prompt and compare them with each other.
#
# - **RLOO** (leave one out): the advantage of a response is its reward minus the mean reward of the *others*.
# - **GRPO**: its reward minus the mean of the whole group, divided by the group's standard deviation.
#
# Every token of a response gets the same advantage: nobody asks which token deserves the credit.

# %% [markdown] id="exercise-advantages-text"
# ### Exercise 2: four responses to one prompt (●○○, 5 minutes)
#
# Their rewards are 2, 0, 1 and 1. What are the four advantages? (The standard deviation here is the one with
# $n - 1$ in the denominator. Two digits after the point are enough.)
#
# <details><summary>Hint</summary>
#
# RLOO, first response: the others have 0, 1 and 1. GRPO: the mean is 1, and the squared deviations add up to 2.
#
# </details>

# %% id="exercise-advantages" tags=["exercise"]
rloo = [..., ..., ..., ...]
grpo = [..., ..., ..., ...]

# %% id="check-advantages" tags=["check"]
check_advantages(rloo, grpo)

# %% [markdown] id="rl-text"
# Now both on the run's own reward model, with PPO's prompts, PPO's temperature and PPO's penalty for a response that
# does not end. RLOO also has PPO's KL penalty; GRPO, as TRL sets it, has none at all. Only the stop at the target holds
# it back.

# %% id="rl"
for method in ("rloo", "grpo"):
    trained[method] = beyond.train(method, lesson.run_dir, lesson.folder, target, options)
    at = trained[method].at
    print(f"{method}: {at.step} steps in {trained[method].seconds:.0f} s, KL {at.kl:.2f}")

# %% [markdown] id="guess-equal-text"
# ## 4. Side by side, at the same KL
#
# **Predict first.** Rank PPO, DPO, KTO, RLOO and GRPO by the gold score that they reach. Will those that never saw the
# reward model be better or worse by *its* score?

# %% id="guess-equal" tags=["guess"]
guess = ""

# %% id="answer-equal" tags=["answer"]
lesson.predict(guess)
examples = read_prompts(beyond.VALIDATION)[options.prompts :][: lesson.size(full=440, nano=24)]  # not those of the stop
reward = of_model(lesson.load("rm").model, meter.tokenizer)
policies |= {method.upper(): one.model for method, one in trained.items()}
found = measure_policies(policies, examples, lesson.run_dir / "sft", reward, seed=lesson.seed)
labelers = load_labelers("rlhf_mini.world.labelers:heldout_labelers")
of_ppo = found["PPO"]
table(
    {
        "": list(found),
        "KL": [one.kl.mean for one in found.values()],
        "RM": [one.reward.mean for one in found.values()],
        "gold": [one.gold for one in found.values()],
        "references": [one.reference.mean for one in found.values()],
        "beats PPO": [beyond.wins(examples, one.responses, of_ppo.responses, labelers) for one in found.values()],
    }
)
lesson.record(**{f"gold_{name.lower()}": one.gold.mean for name, one in found.items()})

# %% [markdown] id="equal-look"
# **What to look for.** First the KL: the columns beside it can be compared only as far as it is the same. Then the
# intervals: where those of two methods overlap widely, this run does not tell which is better. *References* is a judge
# of another construction, which knows none of gold's rules. *Beats PPO* asks held-out labelers, blind; PPO against itself
# is a tie everywhere. Look at *RM*, the reward model's score, last: PPO, RLOO and GRPO were paid by it, DPO and KTO never
# met it.
#
# Then put this table beside that of lesson 6. There the *data* changed and the algorithm stayed, here it is the other way
# round. Which of the two has moved gold more? Over five seeds ([docs/bands.md](../docs/bands.md)), the data sets, a
# careless writer's and a hundred demonstrations among them, lie much further apart than these methods. What counts
# among the methods is whether a reward model scores new samples, not which of PPO, RLOO and GRPO uses the scores.

# %% id="curves" alt="Gold against KL to SFT while each method trains; PPO is one point."
plot = axes("KL to SFT, nats per response", "gold on validation prompts")
for method, one in trained.items():
    plot.plot([0.0, *(p.kl for p in one.curve)], [start.gold, *(p.gold for p in one.curve)], marker=".", label=method)
plot.plot([goal.kl], [goal.gold], "k*", markersize=12, label="ppo")
plot.axvline(target, color="0.7", linestyle=":")
plot.legend()

# %% [markdown] id="curves-look"
# **What to look for.** Each line is one method on its way from SFT. What does it buy for each nat? A line that runs flat
# moves away without getting better. PPO is a single point, because its training is over; it also had more steps, a
# learning rate that falls, and pretraining texts against forgetting.
#
# The responses say more than the means:

# %% id="responses"
spread = [max(golds) - min(golds) for golds in zip(*(one.golds for one in found.values()), strict=True)]
shown = spread.index(max(spread))  # where the methods differ most
print("user:", examples[shown]["prompt"][-1]["content"])
table(
    {
        "": list(found),
        "response": [one.responses[shown].text[:90] for one in found.values()],
        "gold": [one.golds[shown] for one in found.values()],
    }
)

# %% [markdown] id="guess-gold-text"
# ## 5. A reward that can be checked
#
# For some tasks no reward model is needed: a program can tell whether a sum is right or a test passes. This is
# *reinforcement learning with verifiable rewards*, which taught models such as DeepSeek-R1 to reason
# ([DeepSeek-AI 2025](https://arxiv.org/abs/2501.12948)). In this small world everything can be checked: by gold.
#
# Now GRPO is paid by gold itself. Then gold can no longer be the judge! We ask the two judges that gold did not pay:
# reference answers and held-out labelers.
#
# **Predict first.** Gold is the truth, the reward model only an imitation. How much better will GRPO be with gold, at
# the same KL, by the other judges?

# %% id="guess-gold" tags=["guess"]
guess = ""

# %% id="gold"
lesson.predict(guess)
trained["grpo_gold"] = beyond.train("grpo_gold", lesson.run_dir, lesson.folder, target, options)

# %% id="answer-gold" tags=["answer"]
found |= measure_policies(
    {"GRPO, gold": trained["grpo_gold"].model}, examples, lesson.run_dir / "sft", reward, seed=lesson.seed
)
both = {name: found[name] for name in ("SFT", "GRPO", "GRPO, gold")}
table(
    {
        "": list(both),
        "KL": [one.kl.mean for one in both.values()],
        "gold": [one.gold.mean for one in both.values()],
        "references": [one.reference for one in both.values()],
        "beats PPO": [beyond.wins(examples, one.responses, of_ppo.responses, labelers) for one in both.values()],
    }
)
lesson.record(references_grpo=found["GRPO"].reference.mean, references_grpo_gold=found["GRPO, gold"].reference.mean)

# %% [markdown] id="gold-look"
# **What to look for.** *Gold* was the reward of *GRPO, gold*: there it shows that the reward rose, and nothing else.
# Never judge by what was paid. Do the other two agree that it got better, and is the difference larger than the
# intervals? What limits a model of this size may not be the reward, but what it knows and how many responses it has
# seen.
#
# ## 6. Principles instead of people
#
# Constitutional AI ([Bai et al. 2022](https://arxiv.org/abs/2212.08073)), with which Claude was trained, asks people for
# a short list of principles instead of thousands of comparisons. A language model reads a principle and two responses
# and says which one follows it better. These *AI preferences* train the policy.
#
# A model with a million parameters cannot read a principle. So a person has turned each one into a rule on the text
# (`rlhf_mini/classroom/feedback.py`). The rules see the request and the response, neither gold nor its checks. This
# shows at once what such feedback can know, and what it cannot.

# %% id="principles"
rankings = read_rankings(lesson.run_dir / "rm" / "rankings.jsonl")


def agrees(labeler: Constitution) -> Count:
    """The pairs of the run's rankings that this labeler orders as the person did."""
    return sum((agreement([r["ranks"], labeler.rank(r, as_responses(r))]) for r in rankings), Count(0, 0))


counts = [agrees(Constitution((principle,))) for principle in CONSTITUTION]
together = agrees(Constitution())
table(
    {
        "principle": [*(principle.text for principle in CONSTITUTION), "all of them together"],
        "agrees with people": [count.share for count in (*counts, together)],
        "pairs it can decide": [count.pairs for count in (*counts, together)],
    }
)
lesson.record(principles_agree=together.share)

# %% [markdown] id="principles-look"
# **What to look for.** One half is a coin toss. Which principle is a good stand-in for a person, and which is worse than
# its sentence? The one about harm is worth a look: its rule has a list of words such as "steal", and a request to walk
# on thin ice holds none of them. A rule does not understand. A large model does, somewhat, and this is why
# constitutional AI needs one.

# %% [markdown] id="exercise-principles-text"
# ### Exercise 3: what can a rule see? (●○○, 4 minutes)
#
# Each of these principles is to become a rule that sees only the request and the response. Which can be checked from
# the text alone (`"text"`), and which need to know something about the world (`"knowledge"`)?
#
# <details><summary>Hint</summary>
#
# Imagine that request and response are in a language that you cannot read, and that you get a list of some words. Could
# you still apply the principle?
#
# </details>

# %% id="exercise-principles" tags=["exercise"]
needs = {
    "Choose the response that has as many sentences as were asked for.": ...,
    "Choose the response that names the right capital.": ...,
    "Choose the response that does not repeat itself.": ...,
    "Choose the response that does not endanger anybody.": ...,
}

# %% id="check-principles" tags=["check"]
check_principles(needs)

# %% [markdown] id="guess-principles-text"
# Now DPO learns from the principles instead of the people, on the same responses, up to the same KL.
#
# **Predict first.** Gold has six parts: *task* (it does what was asked), *truthful*, *harmless*, *courteous*, *concise*
# and *ends*. In which of them will DPO on principles be better than DPO on people's rankings, and in which worse?

# %% id="guess-principles" tags=["guess"]
guess = ""

# %% id="answer-principles" tags=["answer"] alt="The parts of the gold score for SFT, DPO on people's rankings and DPO on principles."
lesson.predict(guess)
trained["dpo_principles"] = beyond.train("dpo_principles", lesson.run_dir, lesson.folder, target, options)
found |= measure_policies(
    {"DPO, principles": trained["dpo_principles"].model}, examples, lesson.run_dir / "sft", reward, seed=lesson.seed
)
three = {name: found[name] for name in ("SFT", "DPO", "DPO, principles")}
parts = {name: beyond.gold_parts(examples, one.responses) for name, one in three.items()}
plot = axes("", "mean over validation prompts")
for at, (name, of_policy) in enumerate(parts.items()):
    means, lows, highs = zip(*((e.mean, e.mean - e.low, e.high - e.mean) for e in of_policy.values()), strict=True)
    plot.bar([i + 0.27 * (at - 1) for i in range(len(means))], means, 0.25, label=name, yerr=(lows, highs))
plot.set_xticks(range(len(of_policy)), list(of_policy))
plot.legend()
table({"": list(three), "KL": [one.kl.mean for one in three.values()], "gold": [one.gold for one in three.values()]})
lesson.record(gold_principles=found["DPO, principles"].gold.mean)

# %% [markdown] id="principles-result"
# **What to look for.** A policy becomes what its feedback can see. Compare *courteous* and *harmless*, which the rules
# look at, with *task* and *truthful*, which they know nothing of. Does what they know nothing of stay as it was, or is it
# paid for?
#
# ## 7. A weak teacher
#
# One day models may know more than those who supervise them. *Weak-to-strong generalisation*
# ([Burns et al. 2023](https://arxiv.org/abs/2312.09390)), from OpenAI's Superalignment team, plays this through with
# models that we have: a small model learns from people and labels new data, with all its mistakes. A larger one learns
# from these labels alone. Three reward models:
#
# - **weak**: the first layer of the SFT model, trained on a few rankings of people;
# - **weak-to-strong**: the whole SFT model, trained on the *weak* model's rankings of other responses;
# - **strong ceiling**: the same, trained on people's rankings of these responses.
#
# How much of the gap does the student close? The *performance gap recovered* is
#
# $$\mathrm{PGR} = \frac{\text{weak-to-strong} - \text{weak}}{\text{strong ceiling} - \text{weak}}$$
#
# **Predict first.** The student sees nothing but its teacher's labels. Will it be worse than its teacher, as good, or
# better?

# %% id="guess-weak" tags=["guess"]
guess = ""

# %% id="weak"
lesson.predict(guess)
few, many = lesson.size(full=(300, 1200), nano=(40, 80))
path, rm_options = lesson.run_dir / "sft", RMOptions(seed=lesson.seed, learning_rate=1e-3, batch_size=8)
models = {name: weak.first_layers(path, 1 if name == "weak" else 6, lesson.seed) for name in weak.MODELS}
weak.fit(models["weak"], meter.tokenizer, rankings[:few], rm_options)
weak_labels = weak.labelled(models["weak"], meter.tokenizer, rankings[-many:])
weak.fit(models["weak-to-strong"], meter.tokenizer, weak_labels, rm_options)
weak.fit(models["strong ceiling"], meter.tokenizer, rankings[-many:], rm_options)

# %% id="answer-weak" tags=["answer"]
exam = weak.exam(lesson.load("sft"), examples[: lesson.size(full=300, nano=12)], labelers, lesson.seed)
recovered = weak.gap_recovered({name: exam.counts(model, meter.tokenizer) for name, model in models.items()})
table({"": list(recovered), "agrees with held-out labelers": list(recovered.values())})
lesson.record(pgr=recovered["PGR"].mean, weak_to_strong=recovered["weak-to-strong"].mean)

# %% [markdown] id="weak-look"
# **What to look for.** If the student only imitated, its accuracy would be the teacher's. Two things can lift it above:
# it knows more from pretraining, and the teacher's mistakes are partly random, so that they average out over many
# labels, as noise does in any regression. Look at the interval of PGR before you believe it: a quotient of two small
# differences is hard to measure. In our five runs PGR lies on both sides of zero: we have not shown that the student
# recovers anything. Burns et al., too, recovered least of the gap for reward models.

# %% [markdown] id="quiz"
# ## Quiz
#
# **1. A new method reaches a higher reward than PPO, at four times its KL. What follows?**
#
# <details><summary>It is better.</summary>No. PPO would also have earned more reward at that KL. The two were not
# compared.</details>
# <details><summary>Nothing yet: compare at the same KL, and with another judge than the reward.</summary>Right. Both
# the distance and the judge must be the same for both, and the judge must not be what was maximised.</details>
# <details><summary>It is worse, because it went further.</summary>Not necessarily. It may be better at every
# KL. The comparison does not say.</details>
#
# **2. All four responses to a prompt have the same reward. What does GRPO learn from them?**
#
# <details><summary>Nothing.</summary>Right. All advantages are 0. That is why prompts that are too easy or too hard
# teach nothing.</details>
# <details><summary>To say all four more often, if the reward is high.</summary>No. Only differences within the group
# count.</details>
# <details><summary>It divides by zero, and the loss is not a number.</summary>No. A small number is added to the standard
# deviation, and 0 divided by it is 0.</details>
#
# **3. Feedback comes from a program that checks the number of sentences, and nothing else. What will the policy be
# like after long training?**
#
# <details><summary>Right in every way, because a program makes no mistakes.</summary>No. It is right in what is checked.
# All else is free to get worse.</details>
# <details><summary>As before, but with the right number of sentences.</summary>Only if something holds it close to
# SFT, as a KL penalty does. The reward itself does not care.</details>
# <details><summary>It has the right number of sentences, and what they say may be worth nothing.</summary>Right. A reward
# that can be checked is not yet a reward for what you want.</details>
#
# ## Pitfalls
#
# - **Compare at equal KL**, and print the KL. Defaults do not do it for you: GRPO in TRL has no KL term.
# - **Learning rates** are defaults for models of billions of parameters. With TRL's 1e-6 this small model would hardly
#   move.
# - **Left padding.** RLOO and GRPO pad prompts on the left. A model with absolute positions, such as GPT-2, must be told
#   where each row begins. TRL does not ([a report on three of its trainers](https://github.com/huggingface/trl/issues/6800)),
#   and nothing complains. `beyond.with_positions` does; the cell below shows how wrong a log-probability would be.
# - **The end of text.** The chat template gives every response one, also those that never ended. Then the model learns
#   that a torn sentence is complete. `beyond.Pairs` and `beyond.Singles` take it away again.

# %% id="padding"
prompt = meter.prompts[0]
paddings = (0, 4, 16, 64)
pairs = [beyond.left_padded(sft, meter.tokenizer, prompt.ids, padding) for padding in paddings]
table(
    {
        "padding before the prompt": list(paddings),
        "log-probability with a mask alone": [without for without, _ in pairs],
        "with positions": [counted for _, counted in pairs],
    }
)

# %% [markdown] id="simplified"
# ## What is simplified
#
# - The papers tune each method. Here each has one seed and one learning rate, chosen so that it takes about a hundred
#   steps to the target, and constant instead of falling. A different order at another seed would be no surprise.
# - DPO and KTO learn from pairs of the SFT model's responses at a fixed moment. Rafailov et al. do the same; others
#   sample new pairs while training.
# - In constitutional AI, a large model reads the principles and also *revises* responses by them (its first stage). Here
#   rules stand in for the reader, and nothing is revised.
# - Burns et al. use GPT-4 as the student and a model like GPT-2 as the teacher. Here both are parts of one model with
#   six layers.
# - The gold score is a program for a small world. A verifiable reward for real questions is the hard part.

# %% id="finish"
lesson.finish()
