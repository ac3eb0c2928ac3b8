"""How an answer is made: fit the conversation into the context, sample, let the reward model choose."""

import copy
import random
from collections.abc import Callable
from contextlib import suppress

import torch
from rich.text import Text
from torch import Tensor

from rlhf_mini.chat.conversation import Conversation, Exchange, build_prompt, drop_count
from rlhf_mini.chat.display import answer_text, partial_answer, say
from rlhf_mini.chat.keyboard import ctrl_c_event
from rlhf_mini.chat.options import ChatOptions
from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Messages, Response
from rlhf_mini.evaluation.responses import BARE_TEMPLATE, Stage, load_stage
from rlhf_mini.evaluation.runs import foreign_base
from rlhf_mini.models.sampling import sample
from rlhf_mini.models.scoring import score_texts
from rlhf_mini.models.text import context_length, encode_prompts, to_responses

SHORTEST_PROMPT = 16  # tokens that --max_new_tokens must leave for the prompt


class Chat:
    """The stages that answer, and the conversation with each."""

    def __init__(self, options: ChatOptions) -> None:
        self.options = options
        self.conversations = {name: Conversation() for name in options.stages}
        self.best_of = 1
        self.answer_count = 0  # so far, by all stages
        self._loaded: dict[str, Stage] = {}

    def load(self, name: str) -> Stage:
        """A stage, or the reward model "rm". UserError if its checkpoint is missing or broken, or its context small."""
        if name not in self._loaded:
            path = self.options.checkpoint(name)
            if name == "base" and (model := foreign_base(self.options.run_dir)):
                raise UserError(
                    f"{self.options.run_dir} began with {model}, a model from elsewhere, not with the base in {path}: "
                    "chat with sft and ppo"
                )
            load_checkpoint(path, name)
            with console.status(f"loading {name}"):
                stage = load_stage(path, name)
            context = context_length(stage.model)
            if context is not None and self.options.max_new_tokens > context - SHORTEST_PROMPT:
                raise UserError(
                    f"--max_new_tokens must be at most {context - SHORTEST_PROMPT}: "
                    f"the context of {name} is {context} tokens"
                )
            self._loaded[name] = stage
        return self._loaded[name]

    def prompts(self, message: str) -> dict[str, Messages]:
        """The prompt for each stage: as much of its conversation as fits into its context, and the message.

        UserError if the message alone does not fit; the conversations are then as they were.
        """
        dropped = {name: self._drop_count(name, message) for name in self.conversations}
        for name, count in dropped.items():
            self.conversations[name].dropped += count
            if count:
                turns = "turn no longer fits" if count == 1 else f"{count} turns no longer fit"
                say(f"({name}: the oldest {turns} into the context; the model answers without)")
        return {name: build_prompt(c.in_context, message) for name, c in self.conversations.items()}

    def _drop_count(self, name: str, message: str) -> int:
        stage = self.load(name)

        # Through the chat template for the base too, because the reward model and the microscope read it that way.
        def length(prompt: Messages) -> int:
            return len(encode_prompts(stage.tokenizer, [prompt])[0].ids)

        context = context_length(stage.model)
        room = None if context is None else context - self.options.max_new_tokens
        return drop_count(self.conversations[name].in_context, message, length, room)

    def encode(self, name: str, prompt: Messages) -> list[int]:
        """The prompt's tokens: through the chat template, or as plain text for the base."""
        tokenizer = self.load(name).tokenizer
        if name == "base":
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = BARE_TEMPLATE
        return encode_prompts(tokenizer, [prompt])[0].ids

    def respond(self, name: str, prompt: Messages, show: Callable[[Text], None]) -> None:
        """Samples a stage's answer and adds it to the conversation. Ctrl-C ends it early; an empty one is not kept.

        With best-of-n, n samples are drawn as one batch, and the answer is the one with the highest score.

        Args:
            show: called with the answer so far after each token, and with the whole answer at the end.
        """
        stage = self.load(name)
        samples: list[list[int]] = [[] for _ in range(self.best_of)]

        def on_tokens(rows: Tensor, tokens: Tensor) -> None:
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                samples[row].append(token)
            show(partial_answer(stage.tokenizer, samples))
            if ctrl_c.is_set():
                raise KeyboardInterrupt

        self.answer_count += 1
        seed = random.Random(f"{self.options.seed} {self.answer_count}").getrandbits(63)
        with ctrl_c_event() as ctrl_c:
            with suppress(KeyboardInterrupt):
                sample(
                    stage.model, [self.encode(name, prompt)] * len(samples), eos_token_id=stage.tokenizer.eos_token_id,
                    max_new_tokens=self.options.max_new_tokens, temperature=self.options.temperature,
                    generator=torch.Generator().manual_seed(seed), on_tokens=on_tokens,
                )  # fmt: skip
            responses = to_responses(stage.tokenizer, samples)  # whole, or as far as Ctrl-C let them
            if name == "base":  # its tokens follow a prompt of another form: the other models read its answer as text
                responses = [Response(response.text, response.ended) for response in responses]
            scores: list[float] = []
            if len(samples) > 1:
                rm = self.load("rm")
                encoded = encode_prompts(rm.tokenizer, [prompt]) * len(samples)
                scores = score_texts(rm.model, rm.tokenizer, encoded, responses)
            best = scores.index(max(scores)) if scores else 0
            exchange = Exchange(
                number=self.answer_count, stage=name, prompt=prompt, response=responses[best], scores=scores
            )
            show(answer_text(exchange))
            if exchange.response.text.strip():
                self.conversations[name].exchanges.append(exchange)
