"""`make base`: builds the base model from scratch (corpus, byte-level BPE tokenizer, GPT-2, pretraining) and the judge.

    python -m rlhf_mini.world.base

Writes data/base: weights, config, tokenizer, and stage.json with the facts it knows and its gold score on bare
instructions. As for GPT-3, the only objective is next-token prediction on web text. The base is shipped because it
takes long to train: after a million tokens, a model of this size still confused the capitals of neighbouring countries.
"""

import argparse
import array
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from rlhf_mini.core.checkpoints import load_checkpoint, save_checkpoint, writing
from rlhf_mini.core.console import console, run, track
from rlhf_mini.core.examples import Prompt, contents, read_prompts
from rlhf_mini.core.files import MetricsLog
from rlhf_mini.core.options import parse_seed
from rlhf_mini.models.sampling import sample
from rlhf_mini.models.text import encode_plain
from rlhf_mini.training.schedule import warmup_cosine
from rlhf_mini.world.corpus import documents
from rlhf_mini.world.gold import judge
from rlhf_mini.world.heldout import held_out_prompts, without
from rlhf_mini.world.judge import JudgeOptions, train_judge
from rlhf_mini.world.knowledge import DATA, Fact, Knowledge, has, has_any, load
from rlhf_mini.world.muon import optimizers

EOS, PAD, USER, ASSISTANT = "<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>"
# A chat looks like a forum thread in the corpus ("anna: What is ...?", a new line, "ben: The ..."), with a token in
# place of each name. A reply ends with eos, which is part of SFT's loss: this is how the model learns to stop.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|> ' + message['content'] + '<|endoftext|>' }}"
    "{% else %}{{ '<|user|> ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass
class BaseOptions:
    """How the base is trained. data/base was trained with the defaults."""

    seed: int = 0
    vocab_size: int = 1280
    n_positions: int = 192
    n_embd: int = 112
    n_layer: int = 6
    n_head: int = 4
    corpus_tokens: int = 18_000_000
    batch_size: int = 32
    learning_rate: float = 3e-3  # of AdamW, for embeddings, biases and layer norms
    muon_learning_rate: float = 0.02  # of Muon, for the matrices of the transformer blocks
    warmup_steps: int = 50
    few_shot: int = 4  # examples before each question, when its knowledge is measured


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with four special tokens.

    The pad token differs from eos: losses ignore padding, so the model could not learn to emit an eos that is the pad.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, options: BaseOptions) -> GPT2LMHeadModel:
    """A GPT-2 of the shape in `options`, with random weights and without dropout, for the tokenizer's vocabulary.

    It uses the exact GELU: on a CPU, OpenAI's tanh approximation takes three to five times as long.
    """
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=options.n_positions, n_embd=options.n_embd, n_layer=options.n_layer,
        n_head=options.n_head, activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, loss_type="ForCausalLM",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def prepare_for_chat(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Adds the chat template, and initializes the embeddings of the speaker tokens.

    The corpus has no speaker tokens, so their embeddings are copied from ":", which plays their role there. SFT then
    starts at a loss of 1 nat instead of 3 and forgets less of what the model knows. The copies have half the norm: as
    input they work nearly as well, but since output embeddings are tied, full copies would be as likely as ":" itself.
    """
    embeddings = model.get_input_embeddings().weight.data  # (V, d)
    colon = embeddings[tokenizer.convert_tokens_to_ids(":")].clone()  # (d,)
    embeddings[tokenizer.convert_tokens_to_ids([USER, ASSISTANT])] = 0.5 * colon
    tokenizer.chat_template = CHAT_TEMPLATE


def tokenize_corpus(tokenizer: PreTrainedTokenizerFast, seed: int, tokens: int, block: int) -> torch.Tensor:
    """About `tokens` token ids of documents, each followed by eos, in rows of `block`: (N, block)."""
    ids = array.array("i")
    stream = without(documents(seed), held_out_prompts())
    for target in track(range(100_000, tokens + 1, 100_000), "tokenizing the corpus"):
        while len(ids) < target:
            for encoded in tokenizer._tokenizer.encode_batch(list(itertools.islice(stream, 500))):
                ids.extend([*encoded.ids, tokenizer.eos_token_id])
    return torch.tensor(ids[: len(ids) // block * block], dtype=torch.int32).view(-1, block)


def pretrain(model: GPT2LMHeadModel, blocks: torch.Tensor, options: BaseOptions, log: MetricsLog) -> float:
    """Next-token prediction with a cosine schedule to 10 %. Returns the mean loss of the last hundred steps, in nats.

    Muon trains the matrices of the transformer blocks; on this corpus it needs about a third fewer tokens than AdamW.
    """
    muon, adamw = optimizers(model, options.muon_learning_rate, options.learning_rate)
    generator = torch.Generator().manual_seed(options.seed)
    batches = torch.randperm(len(blocks), generator=generator).split(options.batch_size)

    factor = partial(warmup_cosine, steps=len(batches), warmup_steps=options.warmup_steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in (muon, adamw)]
    losses: list[float] = []
    for step, rows in enumerate(track(batches, "pretraining")):
        input_ids = blocks[rows].long()  # (B, n_positions)
        loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adamw.step()
        for schedule in schedules:
            schedule.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == len(batches):
            log.log(
                step=step + 1, loss=sum(losses[-100:]) / len(losses[-100:]), learning_rate=schedules[1].get_last_lr()[0]
            )
    return sum(losses[-100:]) / len(losses[-100:])


@torch.no_grad()
def complete(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    max_new_tokens: int,
    temperature: float,
) -> list[tuple[str, bool]]:
    """Continues plain texts, without a chat template: (continuation, whether it ends with eos)."""
    generator, out = torch.Generator().manual_seed(0), []
    for start in range(0, len(texts), 64):
        rollout = sample(
            model, encode_plain(tokenizer, texts[start : start + 64]), max_new_tokens=max_new_tokens,
            temperature=temperature, eos_token_id=tokenizer.eos_token_id, generator=generator,
        )  # fmt: skip
        for ids in rollout.response_ids:
            out.append((tokenizer.decode(ids, skip_special_tokens=True), ids[-1] == tokenizer.eos_token_id))
    return out


def knows(model: Any, tokenizer: Any, knowledge: Knowledge, shots: int, max_new_tokens: int = 8) -> list[bool]:
    """Whether the model answers correctly, for each fact: greedily, after `shots` other questions with answers.

    An answer ends where the next question begins. The examples have short answers; a chat model may answer in a
    sentence and then needs more than 8 tokens.
    """
    rng, texts, facts = random.Random(1), [], list(knowledge.facts.values())
    for fact in facts:
        others = rng.sample([f for f in facts if f.relation is not fact.relation], shots)
        lines = [f"Question: {f.relation.questions[0].format(e=f.entity)}\nAnswer: {f.accepted[0]}." for f in others]
        texts.append("\n".join([*lines, f"Question: {fact.relation.questions[0].format(e=fact.entity)}\nAnswer:"]))
    answers = complete(model, tokenizer, texts, max_new_tokens=max_new_tokens, temperature=0.0)
    return [is_right(fact, text.split("Question:")[0]) for fact, (text, _) in zip(facts, answers, strict=True)]


def is_right(fact: Fact, said: str) -> bool:
    """Whether a text states an accepted answer to a fact, and no other answer of its relation."""
    wrong = [a for a in fact.relation.pool if a not in fact.accepted and not any(has(g, a) for g in fact.accepted)]
    return has_any(said, fact.accepted) and not has_any(said, wrong)


def gold_on_instructions(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Prompt]
) -> float:
    """Mean gold score of the base's continuations of bare instructions, without a chat template."""
    texts = [contents(example["prompt"]) + "\n" for example in examples]
    answers = complete(model, tokenizer, texts, max_new_tokens=48, temperature=1.0)
    scores = [
        judge(example["check"], example["prompt"], text, ended).score
        for example, (text, ended) in zip(examples, answers, strict=True)
    ]
    return sum(scores) / len(scores)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlhf_mini.world.base", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("data"), help="where to write `base` and `judge` (default: data)"
    )
    parser.add_argument(
        "--corpus_tokens", type=int, default=BaseOptions.corpus_tokens, help="length of the corpus, in tokens"
    )
    parser.add_argument("--seed", type=parse_seed, default=BaseOptions.seed, help="random seed of corpus and training")
    arguments = parser.parse_args()
    options = BaseOptions(seed=arguments.seed, corpus_tokens=arguments.corpus_tokens)

    started, knowledge = time.time(), load()
    set_seed(options.seed)
    with writing(arguments.out, "base") as folder:
        tokenizer = train_tokenizer(list(itertools.islice(documents(options.seed + 1), 20_000)), options.vocab_size)
        blocks = tokenize_corpus(tokenizer, options.seed, options.corpus_tokens, options.n_positions)
        model = new_model(tokenizer, options)
        console.print(f"{model.num_parameters() / 1e6:.2f} M parameters, {blocks.numel() / 1e6:.1f} M tokens")
        loss = pretrain(model, blocks, options, MetricsLog(folder / "metrics.jsonl"))
        model.eval()
        prepare_for_chat(model, tokenizer)
        right = knows(model, tokenizer, knowledge, options.few_shot)
        metrics = {
            "loss": loss,
            "facts_right_few_shot": sum(right) / len(right),
            "gold_on_bare_instructions": gold_on_instructions(
                model, tokenizer, read_prompts(DATA / "prompts" / "validation.jsonl")
            ),
        }
        console.print(metrics)
        save_checkpoint(
            folder, stage="base", model=model, tokenizer=tokenizer, options=options, seed=options.seed, metrics=metrics,
            started=started, parents=[],
        )  # fmt: skip
    train_judge(load_checkpoint(arguments.out / "base", "base"), arguments.out, JudgeOptions(seed=options.seed))


if __name__ == "__main__":
    run(main)
