# %% [markdown] id="title"
# # PPO: one term at a time
#
# **The question.** The reward model can score a whole response. How does a policy learn from one number that comes
# after the last token, and what keeps it from gaming that number?
#
# In lesson 2, a reward model learned what labelers prefer. In this lesson you take PPO's objective apart on real
# tensors of this run: the score, the KL penalty, the advantages, the clipped ratio. Then you break it on purpose, with
# a reward that is easy to please, and see what *reward hacking* looks like in the logs.
#
# The objective is equation 2 of InstructGPT (Ouyang et al. 2022):
#
# $$\mathbb{E}\left[\, r(x, y) - \beta \log \frac{\pi(y|x)}{\pi^{\mathrm{SFT}}(y|x)} \right] + \gamma\, \mathbb{E}\left[ \log \pi(x_{\mathrm{pretrain}}) \right]$$
#
# The last term goes on with pretraining during PPO, so that less is forgotten; lesson 4 measures what it is worth.

# %% id="setup"
import torch
from transformers import AutoModelForSequenceClassification

from rlhf_mini.classroom.checks.lesson3 import check_clip, check_gae, check_rewards
from rlhf_mini.classroom.lesson import Lesson
from rlhf_mini.classroom.measure import measure_policies
from rlhf_mini.classroom.show import axes, table
from rlhf_mini.core.examples import read_prompts
from rlhf_mini.models.text import encode_prompts
from stages.ppo import losses
from stages.ppo.models import load_models
from stages.ppo.options import PPOOptions
from stages.ppo.rewards import of_function, short
from stages.ppo.train import kl_penalized_rewards, rollout, with_advantages

lesson = Lesson(3)

# %% [markdown] id="rollout-text"
# ## 1. Rollout: what PPO looks at
#
# Four models take part. The **policy** answers. The **reference** is the SFT model, frozen. The **reward model** scores
# the finished response. The **value model** says, before each token, how much score it still expects.
#
# The cell loads all four, with the policy and the value model as they are *after* PPO, and samples one response to each
# of a few validation prompts. `rollout` is the function that the training loop itself calls.

# %% id="rollout"
options = PPOOptions(run=lesson.run, runs_dir=str(lesson.runs_dir), seed=lesson.seed)
models = load_models(lesson.checkpoint("sft"), lesson.checkpoint("rm"), options)
models.policy = lesson.load("ppo").model
models.value_model = AutoModelForSequenceClassification.from_pretrained(lesson.run_dir / "ppo" / "value_model").eval()

examples = read_prompts("data/prompts/validation.jsonl")[: lesson.size(full=64, nano=8)]
prompts = encode_prompts(models.tokenizer, [example["prompt"] for example in examples])
trajectories = rollout(models, prompts, options, torch.Generator().manual_seed(lesson.seed))

print("user: ", prompts[0].messages[-1]["content"])
print("model:", trajectories.responses[0].text)
print(f"score: {trajectories.scores[0]:+.2f}")

# %% [markdown] id="guess-kl-text"
# ## 2. The KL penalty
#
# The **KL divergence** measures how far the policy is from SFT: here, for each sampled token, the difference of the two
# log-probabilities, `kl = logprobs - ref_logprobs`. It is subtracted from the reward, so the policy pays for every token
# that SFT would have found less likely.
#
# **Predict first.** A KL divergence is never negative. Can this difference be negative for a single token? And if you
# add it up over a whole response?

# %% id="guess-kl" tags=["guess"]
guess = ""

# %% id="answer-kl" tags=["answer"]
lesson.predict(guess)
kl = losses.kl_k1(trajectories.logprobs, trajectories.ref_logprobs)  # (n,): all tokens of all responses, end to end
per_response = trajectories.rows.sum(kl)  # (B,)
table(
    {
        "of": ["tokens", "responses", "mean of the responses"],
        "least": [kl.min().item(), per_response.min().item(), per_response.mean().item()],
        "greatest": [kl.max().item(), per_response.max().item(), per_response.mean().item()],
        "share below 0": [(kl < 0).float().mean().item(), (per_response < 0).float().mean().item(), 0.0],
    }
)
lesson.record(kl=per_response.mean())

# %% [markdown] id="kl-look"
# **What to look for.** Single tokens and even whole responses can lie below zero: where the policy has become *less*
# sure of a token than SFT was. Only the expectation over the policy's own samples cannot be negative. The estimate from
# samples is unbiased but noisy, and PPO feeds it into the reward token by token.
#
# ## 3. Rewards: one number per token
#
# PPO needs a reward for every token. Each token is charged its KL; the score comes once, at the last token.

# %% [markdown] id="exercise-rewards-text"
# ### Exercise 1: the reward of each token (●○○, 4 minutes)
#
# Write the rewards of *one* response: minus `kl_coef` times the KL of each token, plus the score at the last one.
#
# <details><summary>Hint</summary>
#
# Make a copy first: `rewards = -kl_coef * kl` is a new tensor. Then add the score to `rewards[-1]`.
#
# </details>


# %% id="exercise-rewards" tags=["exercise"]
def token_rewards(score: float, kl: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Rewards (n,) of one response with n tokens from its score and the KL (n,) of its tokens."""
    return ...


# %% id="check-rewards" tags=["check"]
check_rewards(token_rewards)

# %% [markdown] id="advantages-text"
# ## 4. Advantages: which token deserves the credit?
#
# The score arrives at the end. Which of the tokens earned it? The value model predicts the rest of the reward before
# each token. The **advantage** of a token is how much better things went after it than predicted. GAE (Schulman et al.
# 2015, equation 16) adds up prediction errors, with less weight the later they come:
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma\lambda A_{t+1}$$
#
# After the last token there is nothing to expect: both $V$ and $A$ are 0 there. (This $\gamma$ discounts later rewards;
# it has nothing to do with the weight of pretraining in the objective, for which InstructGPT uses the same letter.)

# %% [markdown] id="exercise-gae-text"
# ### Exercise 2: GAE by hand on five tokens (●●○, 8 minutes)
#
# A response has five tokens, rewards `[0, 0, 0, 0, 1]` and values `[0.5, 0.5, 0.2, 0.6, 0.9]`. Take $\gamma = 1$ and
# $\lambda = 0.5$. Work out the five advantages with pencil and paper, starting at the last token.
#
# <details><summary>Hint</summary>
#
# Last token: $\delta_5 = 1 + 0 - 0.9$, and $A_5 = \delta_5$. The one before: $\delta_4 = 0 + 0.9 - 0.6$, and
# $A_4 = \delta_4 + 0.5 \cdot A_5$.
#
# </details>

# %% id="exercise-gae" tags=["exercise"]
advantages = [..., ..., ..., ..., ...]

# %% id="check-gae" tags=["check"]
check_gae(advantages)

# %% [markdown] id="batch-text"
# Now on a real response, with the values of the real value model. Of the responses sampled above, the cell takes the one
# whose values vary most.

# %% id="batch"
batch = with_advantages(trajectories, kl_penalized_rewards(trajectories, options, options.kl_coef), options)
lengths = batch.rows.lengths.tolist()
shown = max(range(len(batch)), key=lambda row: batch.values.split(lengths)[row].std())
print("user: ", prompts[shown].messages[-1]["content"])
print(f"score: {batch.scores[shown]:+.2f}")
table(
    {
        "token": [repr(models.tokenizer.decode([token])) for token in batch.responses[shown].ids],
        "KL": kl.split(lengths)[shown].tolist(),
        "reward": batch.rewards.split(lengths)[shown].tolist(),
        "value before it": batch.values.split(lengths)[shown].tolist(),
        "advantage, whitened": batch.advantages.split(lengths)[shown].tolist(),
    }
)

# %% [markdown] id="batch-look"
# **What to look for.** The rewards are close to 0 up to the last token. The value changes at words that decide: a fact,
# a refusal, the end. A token after which it falls has a lower advantage than the tokens around it. *Whitened* means
# scaled to mean 0 and variance 1 over the whole batch. So even in a batch of good responses many tokens have a negative
# advantage: compared with what was predicted, they went less well than the others.
#
# ## 5. The clipped ratio
#
# One batch is used for several gradient steps, so the policy that learns is soon not the one that sampled. PPO weights
# each token by $\rho = \pi_{\mathrm{new}} / \pi_{\mathrm{old}}$, and stops the gradient where the step has gone far
# enough in the direction that the advantage wants (Schulman et al. 2017, equation 7):
#
# $$L = -\min\left(\rho A,\; \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon)\, A\right)$$

# %% [markdown] id="exercise-clip-text"
# ### Exercise 3: the clip in six cases (●●○, 6 minutes)
#
# With $\epsilon = 0.2$: in which of the six cases does the gradient flow? Write `True` where it does.
#
# <details><summary>Hint</summary>
#
# The gradient stops only if the ratio has *already* moved beyond the limit in the direction that makes the loss
# smaller. A token that went the wrong way must always be able to come back.
#
# </details>

# %% id="exercise-clip" tags=["exercise"]
gradient_flows = {
    # (ratio, sign of the advantage)
    (0.5, "+"): ...,
    (1.0, "+"): ...,
    (1.5, "+"): ...,
    (0.5, "-"): ...,
    (1.0, "-"): ...,
    (1.5, "-"): ...,
}

# %% id="check-clip" tags=["check"]
check_clip(gradient_flows)

# %% id="clip"
ratio = torch.linspace(0.5, 1.5, 101)
both = axes("ratio", "loss of one token", panels=2)
for panel, advantage in zip(both, (1.0, -1.0), strict=True):
    per_token = [
        losses.policy_loss(one.log()[None], torch.zeros(1), torch.tensor([advantage]), options.clip_range).loss
        for one in ratio
    ]
    panel.plot(ratio, torch.stack(per_token))
    panel.set_title(f"advantage {advantage:+.0f}")

# %% [markdown] id="clip-look"
# **What to look for.** The flat parts are where the gradient is 0. With a positive advantage that is to the right, with
# a negative one to the left. Nothing pulls the policy back there; it just gets no further push from this token.
# Everywhere else the slope, the gradient with respect to the ratio, is $-A$.
#
# ## 6. Reward hacking, on purpose
#
# `stages.ppo.rewards:short` pays for short responses and for nothing else. We train against it without a KL penalty
# and without the pretraining term, and keep snapshots of the policy on the way. The reward never sees the *gold* score,
# which says how good a response really is.
#
# **Predict first.** What will the reward do, what will gold do, and what will the responses look like at the end?

# %% id="guess-hacking" tags=["guess"]
guess = ""

# %% id="hacking"
lesson.predict(guess)
updates = lesson.size(full=30, nano=4)
hacked = lesson.train(
    "ppo", "short", reward="stages.ppo.rewards:short", kl_coef=0.0, ptx_coef=0.0, updates=updates, episodes=64,
    warmup_updates=1, on_collapse="warn", snapshot_steps=updates // 4, save_steps=0, sample_every=updates,
)  # fmt: skip

# %% id="answer-hacking" tags=["answer"] alt="Reward and gold score of the snapshots: the reward rises, gold falls."
snapshots = {int(path.name): path for path in sorted((hacked / "snapshots").iterdir())}
sft = lesson.run_dir / "sft"
found = measure_policies({0: sft, **snapshots}, examples, sft, of_function(short, "short"))
plot = axes("update", "mean over validation prompts")
plot.plot(list(found), [one.reward.mean for one in found.values()], marker="o", label="reward: short")
plot.plot(list(found), [one.gold.mean for one in found.values()], marker="o", label="gold")
plot.legend()
table(
    {
        "update": list(found),
        "reward": [one.reward for one in found.values()],
        "gold": [one.gold for one in found.values()],
        "KL": [one.kl for one in found.values()],
        "a response": [one.responses[0].text[:60] for one in found.values()],
    }
)
lesson.record(
    hacking_reward=found[max(found)].reward.mean,
    hacking_gold=found[max(found)].gold.mean,
    hacking_kl=found[max(found)].kl.mean,
)

# %% [markdown] id="hacking-look"
# **What to look for.** The reward rises, and gold falls. The curve that was trained looks perfect. So look at what the
# reward does not see: KL, length, entropy, and above all the responses themselves.
#
# A careless reward, no KL penalty and no pretraining term: here nothing held the policy back. The run's own reward model
# is harder to fool. Without a KL penalty, PPO goes further from SFT there, too, but gold need not fall within so few
# updates; `make overopt` looks for the point where it does ([docs/results.md](../docs/results.md)).
#
# `make doctor` reads the logs of the training above:

# %% id="doctor"
from rlhf_mini.doctor.__main__ import check_stage
from rlhf_mini.doctor.outputs import read_stage

for finding in check_stage(hacked.parent, "ppo", read_stage(hacked.parent, "ppo")):
    if finding.level in ("warn", "fail"):
        print(f"{finding.level}  {finding.name}: {finding.text}")

# %% [markdown] id="quiz"
# ## Quiz
#
# **1. The policy has KL 0 to SFT. What is then true?**
#
# <details><summary>It has found the best response.</summary>No. It is still the SFT model; the penalty is 0 because
# nothing was learned.</details>
# <details><summary>It samples as SFT does.</summary>Right. KL 0 means the same distribution, for the prompts that were
# measured.</details>
# <details><summary>Its scores equal those of SFT on every prompt.</summary>No. Both sample: two draws from the same
# distribution differ. Only their expectation is the same.</details>
#
# **2. The value model is perfect, and predicts each score exactly. What are the advantages (without KL)?**
#
# <details><summary>All zero.</summary>Right: nothing went better or worse than predicted. A perfect value model knows
# before the first token which response will be sampled, which is why no real one is perfect.</details>
# <details><summary>Equal to the score.</summary>No. That is what you get from a value model that always predicts
# 0, with lambda = 1.</details>
# <details><summary>Positive for good responses.</summary>No. A good response that was predicted to be good has no
# advantage. Credit goes to surprises.</details>
#
# **3. Reward and gold both rise for a while; then gold falls while the reward goes on rising. What helps?**
#
# <details><summary>Train longer.</summary>No. Each further step moves away from what labelers would like: this is
# over-optimisation (Gao et al. 2022); `make overopt` looks for it.</details>
# <details><summary>A larger batch.</summary>No. It makes the gradient less noisy, and the wrong target is followed more
# exactly.</details>
# <details><summary>A higher KL coefficient, or stopping earlier.</summary>Right. Both keep the policy where the reward
# model has seen data and can be trusted.</details>
#
# ## Pitfalls
#
# - The KL of a *token* can be negative; its mean over many samples cannot stay so. If it does, the sign is wrong, or the
#   tokens were not sampled from the policy that is measured (top-k, another temperature).
# - `logprobs` must come from the distribution that was sampled from: the same temperature, no top-k, no dropout.
# - The score belongs to the last token of the response, not to the last position of a padded row.
# - Returns are computed before advantages are whitened.
#
# ## What is simplified
#
# - InstructGPT's policy had billions of parameters and a KL coefficient of 0.02 at temperature 1 (Ouyang et al. 2022,
#   appendix C.4). Here it has one million, and samples at a lower temperature.
# - The paper's value model starts from the reward model, as here; its policy and value losses were minimised together
#   or apart, the paper does not say. Here they are two optimisers.
# - Hacking a reward of one line is easy to see. Hacking a reward model that reads is slower and subtler: `make overopt`.

# %% id="finish"
lesson.finish()
