# %% [markdown] id="title"
# # Solutions of lesson 2


# %% id="exercise-loss"
# A over B: margin 0 - 1 = -1,     -log sigmoid(-1) = log(1 + e)    = 1.3133
# A over C: margin 0 - (-2) = 2,   -log sigmoid(2)  = log(1 + e^-2) = 0.1269
# B and C are tied and add nothing, but C(3, 2) = 3 counts their couple.
loss = (1.3133 + 0.1269) / 3

# %% id="exercise-larger"
# By two subtractions; reading them off the table does as well.
larger = {
    name: "bias" if one.training.error - floor > one.validation.error - one.training.error else "variance"
    for name, one in settings.items()
}

# %% id="exercise-leaks"
leaks = {
    "a tenth of the comparisons, at random": True,
    "all comparisons of a tenth of the prompts": False,
    "all rankings by one labeler, where every labeler ranked every prompt": True,
    "all rankings by one labeler, where every prompt was ranked by one labeler": False,
}
