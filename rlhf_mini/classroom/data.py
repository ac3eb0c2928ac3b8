"""Lesson 6's data sets: choosing demonstrations, and generating some from a few (Self-Instruct, Wang et al. 2022).

seeds ──► the base continues lists of instructions ──► filter ──► a teacher answers ──► demonstrations
                          ▲                               │
                          └──────── pool grows ◄──────────┘
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from rlhf_mini.core.examples import Demonstration, Response
from rlhf_mini.evaluation.responses import Stage
from rlhf_mini.models.sampling import respond, sample
from rlhf_mini.models.text import context_length, encode_plain, encode_prompts
from rlhf_mini.world.heldout import core, held_out_prompts
from rlhf_mini.world.references import common

SHOTS = 5  # instructions in a list that the base continues; the paper has 8, and a longer context
OF_POOL = 1  # of these, generated ones, once there are any; the paper has 2
SIMILAR = 0.7  # ROUGE-L from which on an instruction is too similar to one that is there, as in the paper
WORDS = range(3, 41)  # how long an instruction may be
MAX_NEW_TOKENS = 48


def of_writer(demonstrations: Iterable[Demonstration], writer: str) -> list[Demonstration]:
    """The demonstrations that one person wrote."""
    return [each for each in demonstrations if each.get("writer") == writer]


def epochs(demonstrations: int, steps: int, batch_size: int = 32, validation_share: float = 0.05) -> float:
    """The passes over a data set that make `steps` gradient steps, so that data sets of all sizes get as many."""
    return steps * batch_size / (demonstrations * (1 - validation_share))


# --- instructions ----------------------------------------------------------------------------------------------------


@dataclass
class Pool:
    """Instructions that passed the filter, and why the others did not."""

    seeds: list[str]
    kept: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """By reason, in the order in which they came."""

    def __post_init__(self) -> None:
        self._bags = [(bag(seed), words(seed)) for seed in self.seeds]

    def offer(self, instruction: str) -> None:
        """Keeps an instruction, or drops it for the first reason that applies."""
        reason = self.fault(instruction)
        if reason:
            self.dropped.setdefault(reason, []).append(instruction)
        else:
            self.kept.append(instruction)
            self._bags.append((bag(instruction), words(instruction)))

    def fault(self, instruction: str) -> str | None:
        """Why an instruction is not wanted, None if it is."""
        if malformed(instruction):
            return "not one whole instruction"
        if core([{"role": "user", "content": instruction}]) in held_out_prompts():
            return "a prompt of the evaluation"
        own, own_words = bag(instruction), words(instruction)
        for other, other_words in self._bags:
            # No subsequence is longer than what both have in common in any order, which is quick to count.
            if f_measure(len(own & other), len(own), len(other)) < SIMILAR:
                continue
            if rouge_l(own_words, other_words) >= SIMILAR:
                return "too similar to another"
        return None

    @property
    def offered(self) -> int:
        return len(self.kept) + sum(map(len, self.dropped.values()))


def malformed(instruction: str) -> bool:
    """Whether it is too short or long, does not begin and end as a sentence, or is a turn of a talk ("anna: ...")."""
    sentence = re.fullmatch(r"[A-Z].*[.?!]", instruction) is not None
    turn = re.match(r"\w+: ", instruction) is not None and instruction[0].islower()
    return not sentence or turn or len(words(instruction)) not in WORDS


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def bag(text: str) -> frozenset[tuple[str, int]]:
    """The words of a text without their order; one that comes again is another element."""
    seen: Counter[str] = Counter()
    numbered = []
    for word in words(text):
        numbered.append((word, seen[word]))
        seen[word] += 1
    return frozenset(numbered)


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """The F-measure of the longest common subsequence of words, in [0, 1] (Lin 2004)."""
    return f_measure(int(common(tuple(first), tuple(second), {})), len(first), len(second))


def f_measure(both: int, first: int, second: int) -> float:
    return 2 * both / (first + second) if both else 0.0


def continue_lists(base: Stage, lists: Sequence[Sequence[str]], temperature: float, seed: int) -> list[str]:
    """The next line that the base writes after each list of instructions; "" where it ends instead."""
    eos = base.tokenizer.eos_token_id
    room = (context_length(base.model) or 10**6) - MAX_NEW_TOKENS - 1
    texts = ["\n".join(each) + "\n" for each in lists]
    ids = [[eos, *each[-room:]] for each in encode_plain(base.tokenizer, texts)]
    rollout = sample(
        base.model, ids, max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, eos_token_id=eos,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    written = base.tokenizer.batch_decode(rollout.response_ids, skip_special_tokens=True)
    return [text.partition("\n")[0].strip() for text in written]


def generate_instructions(
    base: Stage, seeds: Sequence[str], number: int, *, lists: int = 512, rounds: int = 20, temperature: float = 0.7,
    seed: int = 0,
) -> Pool:  # fmt: skip
    """Self-Instruct's first step: the base continues lists of instructions; what passes the filter joins the pool.

    Args:
        number: stops when so many are kept, or after `rounds` rounds.
        lists: that are continued in a round.
    """
    pool, rng = Pool(list(seeds)), random.Random(seed)
    for _ in range(rounds):
        drawn = [draw_list(pool, rng) for _ in range(lists)]
        for instruction in continue_lists(base, drawn, temperature, rng.randrange(2**31)):
            pool.offer(instruction)
            if len(pool.kept) == number:
                return pool
    return pool


def draw_list(pool: Pool, rng: random.Random) -> list[str]:
    """SHOTS instructions in random order, OF_POOL of them generated ones as soon as there are any."""
    new = rng.sample(pool.kept, min(OF_POOL, len(pool.kept)))
    both = [*rng.sample(pool.seeds, min(SHOTS - len(new), len(pool.seeds))), *new]
    return rng.sample(both, len(both))


# --- answers ---------------------------------------------------------------------------------------------------------


def answer(teacher: Stage, instructions: Sequence[str], temperature: float = 0.7, seed: int = 0) -> list[Demonstration]:
    """The teacher's answers as demonstrations; those that it did not end are left out."""
    messages = [[{"role": "user", "content": instruction}] for instruction in instructions]
    responses = respond(
        teacher.model, teacher.tokenizer, encode_prompts(teacher.tokenizer, messages), max_new_tokens=MAX_NEW_TOKENS,
        temperature=temperature, seed=seed,
    )  # fmt: skip
    return [
        demonstration(instruction, response)
        for instruction, response in zip(instructions, responses, strict=True)
        if response.ended and response.text.strip()
    ]


def demonstration(instruction: str, response: Response) -> Demonstration:
    return {
        "prompt": [{"role": "user", "content": instruction}],
        "completion": [{"role": "assistant", "content": response.text.strip()}],
    }
