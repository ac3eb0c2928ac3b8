# %% [markdown] id="title"
# # Solutions of lesson 3

# %% id="exercise-rewards"
def token_rewards(score: float, kl: torch.Tensor, kl_coef: float) -> torch.Tensor:
    rewards = -kl_coef * kl
    rewards[-1] += score
    return rewards


# %% id="exercise-gae"
# A5 = 1 - 0.9                    = 0.1
# A4 = (0.9 - 0.6) + 0.5 * 0.1    = 0.35
# A3 = (0.6 - 0.2) + 0.5 * 0.35   = 0.575
# A2 = (0.2 - 0.5) + 0.5 * 0.575  = -0.0125
# A1 = (0.5 - 0.5) + 0.5 * A2     = -0.00625
advantages = [-0.00625, -0.0125, 0.575, 0.35, 0.1]

# %% id="exercise-clip"
gradient_flows = {
    (0.5, "+"): True,
    (1.0, "+"): True,
    (1.5, "+"): False,
    (0.5, "-"): False,
    (1.0, "-"): True,
    (1.5, "-"): True,
}
