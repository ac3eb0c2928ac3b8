# %% [markdown] id="title"
# # Solutions of lesson 1


# %% id="exercise-labels"
def labels(prompt_ids: list[int], completion_ids: list[int]) -> list[int]:
    return [-100] * len(prompt_ids) + completion_ids


# %% id="exercise-epochs"
trained_runs = [n for n in losses if n > 0]
by_loss = min(trained_runs, key=lambda n: losses[n].mean)
by_gold = max(trained_runs, key=lambda n: golds[n].mean)

# %% id="exercise-writers"
# careful, brisk, chatty, careless, grumpy, pleaser
wrong_share = 0.2 * 0.03 + 0.2 * 0.15 + 0.15 * 0.2 + 0.2 * 0.6 + 0.1 * 0.15 + 0.15 * 0.4
