"""How cost grows with parameters, response length and episodes, and what a GPT-2 of 124 M parameters would take.

    python -m benchmarks.scale --out docs/scale.json       # 3 to 10 minutes on one thread, 3 GB

Measured: an iteration of PPO, an optimizer step of SFT (32 demonstrations of 64 tokens) and one of the reward model (16
rankings of K = 4), on random weights that never end a response. Each is a process of its own, whose peak memory is its
own. Computed: the memory and the hours of configs/*.yaml, from counts of operations (floor.py) and of tensors.
What to inspect: the slope of seconds over parameters, 1 where time is all matrix products; whether the computed memory
agrees with the measured one, in the same table; and which of the presets fit on your GPU.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import linear_regression, median
from typing import Any, Literal

import torch
import yaml
from rich.box import SIMPLE
from rich.table import Table
from transformers import AutoConfig, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from benchmarks import floor, memory
from benchmarks.bench import machine
from benchmarks.cases import PROMPT_TOKENS, forbid
from benchmarks.ours import update
from rlhf_mini.core.checkpoints import peak_memory_mb
from rlhf_mini.core.console import UserError, console, run, track
from rlhf_mini.core.files import write_json
from rlhf_mini.core.options import command_line
from rlhf_mini.models.text import EncodedPrompt, load_tokenizer
from rlhf_mini.training.loop import MAX_GRAD_NORM, adamw
from stages.ppo.models import Models
from stages.ppo.options import PPOOptions
from stages.ppo.rewards import of_model
from stages.ppo.run import Learner
from stages.rm.options import RMOptions
from stages.rm.rankings import Example as Ranking
from stages.rm.train import objective
from stages.sft.options import SFTOptions
from stages.sft.train import Example, completion_loss

SHAPES = {"0.1 M": (2, 40, 2), "1 M": (6, 112, 4), "3 M": (6, 192, 6), "10 M": (8, 320, 5), "30 M": (12, 448, 7)}
TOKENS, EPISODES = (16, 32, 64, 128), (16, 64, 256)  # of the sweeps, at 1 M
ROWS, SFT_TOKENS, RANKINGS, K, RESPONSE = 32, 64, 16, 4, 32
MINIBATCH, REPETITIONS, SECONDS = 16, 3, 20.0  # no further repetition after so many seconds
# Operations a second in float32 and bfloat16, without sparsity, by NVIDIA's Ada and Ampere whitepapers.
GPUS = {"RTX 4090": (82.6e12, 165.2e12), "A100": (19.5e12, 312e12)}
UTILISATION = (0.3, 0.2)  # assumed, of these: the matrices of 124 M are small
# Of the presets: mean tokens of a prompt, K, vocabulary. Assumed, but for the vocabularies.
PRESETS = {"gpt2-hh": (200, 2, 50257), "gpt2-tldr": (350, 2, 50257), "kogpt2-kochatgpt": (40, 3, 51200)}


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    what: Literal["ppo", "sft", "rm"]
    size: str
    episodes: int = 64
    response: int = RESPONSE

    @property
    def config(self) -> Any:
        layers, width, heads = SHAPES[self.size]
        return AutoConfig.from_pretrained("data/base", n_layer=layers, n_embd=width, n_head=heads)

    @property
    def flops(self) -> int:
        """The matrix products that it cannot do without."""
        if self.what == "ppo":
            return floor.update_flops(self.config, [PROMPT_TOKENS] * self.episodes, [self.response] * self.episodes)
        if self.what == "sft":
            return 3 * ROWS * floor.forward_flops(self.config, SFT_TOKENS - 1, SFT_TOKENS - PROMPT_TOKENS)
        return 3 * RANKINGS * K * floor.forward_flops(self.config, PROMPT_TOKENS + RESPONSE, 0)


# --- measured --------------------------------------------------------------------------------------------------------


def measure(case: Case, threads: int) -> dict[str, Any]:
    """Seconds, peak memory and times the floor; to be called in a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    before, work = peak_memory_mb(), {"ppo": iteration, "sft": sft_step, "rm": rm_step}[case.what](case)
    clock = time.process_time if threads == 1 else time.perf_counter  # other programs do not lengthen the first
    work(8)  # warms up
    seconds: list[float] = []
    while len(seconds) < REPETITIONS and sum(seconds) < SECONDS:
        started = clock()
        work({"ppo": case.episodes, "sft": ROWS, "rm": RANKINGS}[case.what])
        seconds.append(clock() - started)
    peak, rate = peak_memory_mb(), floor.matmul_rate(512, 512, 512, seconds=1.0)
    parts = memory.ppo_memory(case.config, PROMPT_TOKENS, case.response, case.episodes, MINIBATCH, reader=False)
    return asdict(case) | {
        "parameters": memory.parameters(case.config), "seconds": median(seconds), "all_seconds": seconds,
        "flops": case.flops, "rate": rate, "times_the_floor": median(seconds) * rate / case.flops,
        "peak_memory_mb": peak, "computed_mb": before + round(memory.ppo_peak(parts, at_once=threads > 1) / 1e6),
    }  # fmt: skip


def iteration(case: Case) -> Callable[[int], None]:
    """An iteration of PPO on some episodes."""
    tokenizer, config = load_tokenizer(Path("data/base")), case.config
    policy, value_model = GPT2LMHeadModel(config).eval(), scalar(config)
    forbid(policy, [tokenizer.eos_token_id, tokenizer.pad_token_id])
    models = Models(policy, value_model, deepcopy(policy), of_model(scalar(config), tokenizer), tokenizer)
    options = PPOOptions(episodes=MINIBATCH, num_minibatches=1, max_new_tokens=case.response, ptx_coef=0.0)
    learner = Learner(models, options)
    learner.set_rates(1e-4, 1e-4)  # so low that responses stay without an end
    prompts = [EncodedPrompt([], ids) for ids in random_rows(config, case.episodes, PROMPT_TOKENS)]

    def work(episodes: int) -> None:
        this = replace(options, episodes=episodes, num_minibatches=max(1, episodes // MINIBATCH))
        assert set(update(models, learner, prompts[:episodes], this, iter(()))) == {case.response}

    return work


def sft_step(case: Case) -> Callable[[int], None]:
    model = GPT2LMHeadModel(case.config)
    rows = [Example(ids[:PROMPT_TOKENS], ids[PROMPT_TOKENS:]) for ids in random_rows(case.config, ROWS, SFT_TOKENS)]
    return optimizer_step(model, SFTOptions(), lambda number: completion_loss(model, rows[:number]))


def rm_step(case: Case) -> Callable[[int], None]:
    model, length = scalar(case.config), PROMPT_TOKENS + RESPONSE
    rankings = [Ranking(random_rows(case.config, K, length), [*range(K)], PROMPT_TOKENS) for _ in range(RANKINGS)]
    return optimizer_step(model, RMOptions(), lambda number: objective(model, rankings[:number]).loss)


def optimizer_step(model: Any, options: Any, loss: Callable[[int], torch.Tensor]) -> Callable[[int], None]:
    """A step as training/loop.py takes it."""
    optimizer = adamw(model.eval(), options)

    def work(number: int) -> None:
        loss(number).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return work


def scalar(config: Any) -> Any:
    return GPT2ForSequenceClassification(GPT2Config(**config.to_dict() | {"num_labels": 1})).eval()


def random_rows(config: Any, number: int, length: int) -> list[list[int]]:
    """Tokens that are neither the end of text nor padding."""
    rows: list[list[int]] = torch.randint(2, config.vocab_size, (number, length)).tolist()
    return rows


# --- computed --------------------------------------------------------------------------------------------------------


def presets(seconds_per_flop: float) -> list[dict[str, Any]]:
    """GB and hours of configs/*.yaml, as they are and in parts of 16; pairs are of float32 and bf16."""
    found = []
    for name, (prompt, k, vocabulary) in PRESETS.items():
        stages = yaml.safe_load(Path(f"configs/{name}.yaml").read_text(encoding="utf-8"))
        ppo, rm, config = PPOOptions(**stages["ppo"]), RMOptions(**stages["rm"]), GPT2Config(vocab_size=vocabulary)
        lengths = [prompt] * ppo.episodes, [ppo.max_new_tokens] * ppo.episodes
        flops = ppo.updates * floor.update_flops(config, *lengths)
        hours = {
            gpu: [flops / (rate * u) / 3600 for rate, u in zip(GPUS[gpu], UTILISATION, strict=True)] for gpu in GPUS
        }
        for minibatch, batch in dict.fromkeys([(ppo.minibatch_size, rm.batch_size), (MINIBATCH, RANKINGS)]):
            sizes = prompt, ppo.max_new_tokens, ppo.episodes, minibatch
            parts = [memory.ppo_memory(config, *sizes, bf16) for bf16 in (False, True)]
            rm_bytes = [memory.rm_peak(config, prompt + ppo.max_new_tokens, batch * k, bf16) for bf16 in (False, True)]
            found.append({
                "preset": name, "minibatch": minibatch, "rm_batch_size": batch, "flops": flops,
                "hours": {"here": flops * seconds_per_flop / 3600} | hours,
                "gb": {part: [one[part] / 1e9 for one in parts] for part in parts[0]}
                | {"ppo": [memory.ppo_peak(one) / 1e9 for one in parts], "rm": [one / 1e9 for one in rm_bytes]},
            })  # fmt: skip
    return found


# --- the command -----------------------------------------------------------------------------------------------------


def slope(measured: Sequence[dict[str, Any]]) -> float:
    """The power of the parameters with which seconds grow: the slope of a line through the logarithms."""
    sizes, seconds = ([math.log(one[key]) for one in measured] for key in ("parameters", "seconds"))
    return linear_regression(sizes, seconds).slope


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default=",".join(SHAPES), help="models to measure (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/scale.json"), help="JSON to write (default: %(default)s)"
    )
    options = parser.parse_args()
    sizes = options.sizes.split(",")
    if unknown := set(sizes) - set(SHAPES):
        raise UserError(f"--sizes: there is no {unknown.pop()}: choose from {', '.join(SHAPES)}")
    cases = [Case(what, size) for size in sizes for what in ("ppo", "sft", "rm")]
    cases += [case for tokens in TOKENS if (case := Case("ppo", "1 M", response=tokens)) not in cases]
    cases += [case for episodes in EPISODES if (case := Case("ppo", "1 M", episodes)) not in cases]
    measured = []
    context = get_context("forkserver")  # a process that has only imported, of which each case gets a copy
    context.set_forkserver_preload(["benchmarks.bench", "benchmarks.ours", "stages.rm.train", "stages.sft.train"])
    for case in track(cases, "measuring"):
        with ProcessPoolExecutor(1, context) as process:
            measured.append(process.submit(measure, case, options.threads).result())
    by_size = {
        what: [one for one in measured[: 3 * len(sizes)] if one["what"] == what] for what in ("ppo", "sft", "rm")
    }
    slopes = {what: [slope(these), slope(these[-3:])] for what, these in by_size.items()} if len(sizes) > 1 else {}
    largest = by_size["ppo"][-1]
    computed = presets(largest["seconds"] / largest["flops"])
    write_json(options.out, {
        "command": command_line("python -m benchmarks.scale"), "machine": machine(options.threads), "slopes": slopes,
        "measured": measured, "utilisation": UTILISATION, "gpus": GPUS, "computed": computed,
    })  # fmt: skip
    console.width = max(console.width, 110)  # where nobody looks, it is 80, and the tables would be cut
    show_measured(measured)
    for what, (of_all, of_last) in slopes.items():
        console.print(
            f"{what}: seconds grow with parameters to the power {of_all:.2f}, of the last three {of_last:.2f}"
        )
    show_computed(computed, f"{options.threads} thread(s) here")


def show_measured(measured: Sequence[dict[str, Any]]) -> None:
    headings = ("", "size", "parameters", "episodes", "tokens", "seconds", "x floor", "GFLOP/s", "MB", "computed MB")
    table = table_of("Measured", headings)
    for one in measured:
        ppo = [str(one[key]) for key in ("episodes", "response", "computed_mb")] if one["what"] == "ppo" else [""] * 3
        numbers = f"{one['seconds']:.3f}", f"{one['times_the_floor']:.1f}", f"{one['rate'] / 1e9:.0f}"
        table.add_row(one["what"], one["size"], f"{one['parameters']:,}", *ppo[:2], *numbers,
                      str(one["peak_memory_mb"]), ppo[2])  # fmt: skip
    console.print(table)


def show_computed(computed: Sequence[dict[str, Any]], here: str) -> None:
    columns = ("weights", "optimizer", "rollout", "policy", "value_model", "ppo", "rm")
    table = table_of("Computed: GB in float32 / bf16", ("", "batches", *columns))
    for one in computed:
        cells = [" / ".join(f"{number:.0f}" for number in one["gb"][column]) for column in columns]
        table.add_row(one["preset"], f"{one['minibatch']}, {one['rm_batch_size']}", *cells)
    console.print(table)
    used = " / ".join(f"{share:.0%}" for share in UTILISATION)
    hours = table_of(
        f"Computed: hours of PPO; of a GPU, float32 / bf16 at {used} of its peak", ("", "PFLOP", here, *GPUS)
    )
    for one in {one["preset"]: one for one in computed}.values():
        on_gpus = [" / ".join(f"{number:.2f}" for number in one["hours"][gpu]) for gpu in GPUS]
        hours.add_row(one["preset"], f"{one['flops'] / 1e15:.0f}", f"{one['hours']['here']:.0f}", *on_gpus)
    console.print(hours)


def table_of(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1), pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    return table


if __name__ == "__main__":
    run(main)
