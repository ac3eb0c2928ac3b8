# %% [markdown] id="title"
# # Solutions of lesson 6

# %% id="exercise-rouge"
rouge = {
    # in common: write a poem about the; 6 and 7 words
    ("Write a poem about the sea.", "Write a short poem about the moon."): 2 * 5 / (6 + 7),
    # in common: sound make; "does" is not "do", nor is "bee" "bees"; 6 and 5 words
    ("What sound does a bee make?", "Which sound do bees make?"): 2 * 2 / (6 + 5),
    # in common: the sees the; all five words are the same, but not in the same order
    ("The dog sees the cat.", "The cat sees the dog."): 2 * 3 / (5 + 5),
}


# %% id="exercise-fair"
def fair_wins(ours_first, ours_second):
    return ((ours_first > 0) * 1.0 + (ours_second > 0)) / 2


# %% id="exercise-biases"
unknown = unknown_judge()
prompt = examples[:1]
short, long = [Response("no", True)], [Response("no no no", True)]
first_bonus = unknown(prompt, short, short)[0]  # no difference in gold nor in words
word_bonus = (unknown(prompt, long, short)[0] - first_bonus) / 2  # both are worth nothing; two words more
