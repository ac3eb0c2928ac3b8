# %% [markdown] id="title"
# # Solutions of lesson 0


# %% id="exercise-softmax"
def softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return (logits / temperature).softmax(-1)


# %% id="exercise-draw"
def draw_token(probabilities: torch.Tensor, u: float) -> int:
    return int((probabilities.cumsum(-1) <= u).sum())


# %% id="exercise-few-shot"
def few_shot_prompt(question: str, examples: list[tuple[str, str]]) -> str:
    solved = [f"Question: {q}\nAnswer: {a}." for q, a in examples]
    return "\n".join([*solved, f"Question: {question}\nAnswer:"])
