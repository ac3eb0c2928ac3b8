"""A conversation with one stage: what was said, and how much of it still fits into the model's context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_mini.core.console import UserError
from rlhf_mini.core.examples import Messages, Response


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A message and the answer to it."""

    number: int
    """The answer's number in this session, from 1. With the seed it decides the draws."""
    stage: str
    """The stage that answered."""
    prompt: Messages
    """What the stage was shown: the earlier messages that fitted into its context, and the message."""
    response: Response
    scores: list[float] = field(default_factory=list)
    """The reward model's scores of all samples if it picked this one, else empty."""

    @property
    def message(self) -> str:
        return self.prompt[-1]["content"]

    @property
    def messages(self) -> Messages:
        return [self.prompt[-1], {"role": "assistant", "content": self.response.text}]

    def demonstration(self) -> dict[str, Any]:
        """The exchange as a demonstration (core/examples.py), with keys that say how the answer was sampled."""
        picked = {"best_of": len(self.scores), "rm_score": max(self.scores)} if self.scores else {}
        about = {"stage": self.stage, "number": self.number, "ended": self.response.ended, **picked}
        return {"prompt": self.prompt, "completion": self.messages[1:], **about}


@dataclass
class Conversation:
    exchanges: list[Exchange] = field(default_factory=list)
    dropped: int = 0
    """How many exchanges, the oldest, no longer fit into the context."""

    @property
    def in_context(self) -> list[Exchange]:
        return self.exchanges[self.dropped :]

    def copy(self) -> "Conversation":
        return Conversation(list(self.exchanges), self.dropped)


def build_prompt(exchanges: Sequence[Exchange], message: str) -> Messages:
    """The exchanges and the new message as a prompt."""
    return [*(m for exchange in exchanges for m in exchange.messages), {"role": "user", "content": message}]


def drop_count(exchanges: Sequence[Exchange], message: str, length: Callable[[Messages], int], room: int | None) -> int:
    """How many of the oldest exchanges must be dropped for the prompt to fit.

    Args:
        length: counts the tokens of a prompt.
        room: most tokens of a prompt; None for a model whose context has no limit.

    Raises:
        UserError: the message alone has more than `room` tokens.
    """
    for dropped in range(len(exchanges) + 1):
        tokens = length(build_prompt(exchanges[dropped:], message))
        if room is None or tokens <= room:
            return dropped
    raise UserError(
        f"this message alone has {tokens} tokens, but the context has room for {room} beside the answer: "
        "send a shorter one, or restart with a lower --max_new_tokens"
    )
