# %% [markdown] id="title"
# # Solutions of lesson 5

# %% id="exercise-agreement"
from itertools import combinations


def agreeing_pairs(a: list[int], b: list[int]) -> tuple[int, int]:
    signs = [(a[i] - a[j]) * (b[i] - b[j]) for i, j in combinations(range(len(a)), 2)]
    return sum(sign > 0 for sign in signs), sum(sign != 0 for sign in signs)


# %% id="exercise-ranks"
def ranks_of(qualities: list[float]) -> list[int]:
    return [1 + sum(other > quality for other in qualities) for quality in qualities]


# %% id="exercise-width"
def half_width(share: float, pairs: int) -> float:
    return 1.96 * (share * (1 - share) / pairs) ** 0.5


# Pairs of one prompt share their responses, so 60 of them tell less than 60 independent ones.
truth = "wider"
