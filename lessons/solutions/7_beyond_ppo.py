# %% [markdown] id="title"
# # Solutions of lesson 7

# %% id="exercise-dpo"
def dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, sft_chosen: torch.Tensor, sft_rejected: torch.Tensor, beta: float
) -> torch.Tensor:
    margin = beta * (chosen - sft_chosen) - beta * (rejected - sft_rejected)
    return -torch.nn.functional.logsigmoid(margin)


# %% id="exercise-advantages"
# RLOO: 2 - (0 + 1 + 1) / 3 = 1.33;  0 - (2 + 1 + 1) / 3 = -1.33;  1 - (2 + 0 + 1) / 3 = 0
# GRPO: mean 1, standard deviation sqrt(2 / 3) = 0.82;  1 / 0.82 = 1.22
rloo = [4 / 3, -4 / 3, 0, 0]
grpo = [1.22, -1.22, 0, 0]

# %% id="exercise-principles"
needs = {
    "Choose the response that has as many sentences as were asked for.": "text",
    "Choose the response that names the right capital.": "knowledge",
    "Choose the response that does not repeat itself.": "text",
    "Choose the response that does not endanger anybody.": "knowledge",
}
