"""Fixtures for all tests. rlhf_mini comes first: it takes the Hugging Face libraries offline."""

import rlhf_mini  # noqa: F401, I001

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini.core.checkpoints import load_checkpoint, save_checkpoint, writing
from rlhf_mini.evaluation.compare import CompareOptions
from rlhf_mini.core.examples import Prompt
from rlhf_mini.core.files import write_jsonl
from rlhf_mini.core.inputs import ROOT
from rlhf_mini.world.base import BaseOptions, new_model, prepare_for_chat, train_tokenizer

TEXTS = ["What colour is a kiwi inside?", "It is green.", "Name the capital of France.", "It is Paris."]


@pytest.fixture(scope="session")
def _nano_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    options = BaseOptions(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2)
    torch.manual_seed(options.seed)
    model = new_model(tokenizer, options)
    prepare_for_chat(model, tokenizer)
    with writing(folder, "base") as partial:
        save_checkpoint(
            partial,
            stage="base",
            model=model,
            tokenizer=tokenizer,
            options=options,
            seed=options.seed,
            metrics={},
            started=time.time(),
        )
    return folder / "base"


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of what a whole training run comes to: the number of threads decides how sums are rounded."""
    with threads(1):
        yield


@pytest.fixture
def four_threads() -> Iterator[None]:
    with threads(4):
        yield


@pytest.fixture
def nano_base(_nano_base: Path, tmp_path: Path) -> Path:
    """A checkpoint like data/base, but random and tiny: GPT-2 of 2 layers and width 32, byte-level BPE, chat template.

    Each test gets a copy of its own in tmp_path/base, to build on or to break.
    """
    return Path(shutil.copytree(_nano_base, tmp_path / "base"))


# --- a whole run -----------------------------------------------------------------------------------------------------


def new_prompt(number: int, use_case: str, content: str, check: dict[str, Any]) -> Prompt:
    prompt = [{"role": "user", "content": content}]
    return {"id": f"t-{number}", "use_case": use_case, "novel": "none", "prompt": prompt, "check": check}


PROMPTS = [
    new_prompt(1, "other", "Say the word frog twice.", {"repeat": {"word": "frog", "n": 2}, "max_words": 10}),
    new_prompt(2, "other", "Say the word cup twice.", {"repeat": {"word": "cup", "n": 2}, "max_words": 10}),
    new_prompt(3, "generation", "Write about a cat.", {"mention": [["cat"]], "max_words": 10}),
    new_prompt(4, "generation", "Write about a hat.", {"mention": [["hat"]], "max_words": 10}),
]


@pytest.fixture
def nano_run(nano_base: Path, tmp_path: Path) -> CompareOptions:
    """Random checkpoints of all stages in tmp_path/runs/r, four prompts and a demonstration."""
    run_dir = tmp_path / "runs" / "r"
    tokenizer = AutoTokenizer.from_pretrained(nano_base)
    parents = [load_checkpoint(nano_base, "base")]
    options = CompareOptions(
        run="r",
        runs_dir=str(tmp_path / "runs"),
        base=str(nano_base),
        split=str(tmp_path / "prompts" / "test.jsonl"),
        demonstrations=str(tmp_path / "demonstrations.jsonl"),
        max_new_tokens=6,
        show=3,
    )
    for seed, stage in enumerate(("sft", "rm", "ppo")):
        torch.manual_seed(seed)
        if stage == "rm":
            model = AutoModelForSequenceClassification.from_pretrained(nano_base, num_labels=1)
        else:
            model = AutoModelForCausalLM.from_pretrained(nano_base)
            with torch.no_grad():
                model.transformer.wte.weight.add_(0.1 * torch.randn_like(model.transformer.wte.weight))
        with writing(run_dir, stage) as folder:
            save_checkpoint(
                folder, stage=stage, model=model, tokenizer=tokenizer, options=options, seed=seed, metrics={},
                started=time.time(), parents=parents,
            )  # fmt: skip
        parents = [*parents, load_checkpoint(run_dir / stage, stage)]
    write_jsonl(options.split, PROMPTS)
    completion = [{"role": "assistant", "content": "It is green."}]
    write_jsonl(
        options.demonstrations, [{"prompt": PROMPTS[0]["prompt"], "completion": completion, "use_case": "other"}]
    )
    return options


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run "nano" of the shipped base, trained by the nano presets; all processes of pytest share it."""
    folder = tmp_path_factory.getbasetemp().parent / "lessons"
    with FileLock(f"{folder}.lock"):
        for stage in ("sft", "rm", "ppo"):
            if not (folder / "nano" / stage).exists():
                command = [sys.executable, "-m", f"stages.{stage}", "--config", f"stages/{stage}/nano.yaml"]
                # Meanwhile the other processes wait for it, so it may use their cores.
                environment = {**os.environ, "OMP_NUM_THREADS": str(min(2, os.cpu_count() or 1))}
                subprocess.run([*command, "--runs_dir", str(folder)], cwd=ROOT, check=True, env=environment)
    return folder


@contextmanager
def launched() -> Iterator[Any]:
    """Chromium; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser tests")
    from benchmarks.screenshot import BROWSERS

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip("no Chromium on this machine: no browser tests")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()
