"""Fixtures for all tests. rlhf_mini comes first: it takes the Hugging Face libraries offline."""

import rlhf_mini  # noqa: F401, I001

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rlhf_mini.checkpoints import finish, writing
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
        finish(
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
