"""From an empty class to the class's own policy, and to a second round: on a nano run of the shipped base."""

import argparse
import json
import secrets
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from rlhf_mini.core.checkpoints import load_checkpoint
from rlhf_mini.core.console import UserError, console
from rlhf_mini.core.examples import Response
from rlhf_mini.core.rankings import competition
from rlhf_mini.workshop import work
from rlhf_mini.workshop.sampling import new_round
from rlhf_mini.workshop.store import Store
from rlhf_mini.world.labelers import heldout_labelers
from stages.ppo import options as ppo_options

pytestmark = pytest.mark.lessons


@pytest.fixture
def options(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[argparse.Namespace]:
    shutil.copytree(trained / "nano", tmp_path / "nano")
    few = partial(ppo_options.PPOOptions, updates=2, episodes=16, num_minibatches=2, warmup_updates=1, ptx_batch_size=2,
                  evaluation_prompts=16, max_new_tokens=16)  # fmt: skip
    monkeypatch.setattr(ppo_options, "PPOOptions", few)
    monkeypatch.setattr(work, "FOLDS", 2)
    with console.capture():
        yield argparse.Namespace(
            run="nano", runs_dir=tmp_path, name="ours", prompts=12, common=3, responses=3, start="fresh", round=1
        )


def rank(store: Store, students: int, number: int) -> None:
    """Each student ranks as one of the simulated labelers."""
    labelers = heldout_labelers()
    for index in range(students):
        token = secrets.token_hex(20)
        store.join(f"student {index}", token)
        student = store.student(token)
        assert student is not None
        while (item := store.next_item(student.id, number)) is not None:
            responses = [Response(*each) for each in zip(item.responses, item.ended, strict=True)]
            ranks = labelers[index % len(labelers)].rank(item.example, responses)
            store.label(student.id, item.id, "all_bad" if len(set(ranks)) == 1 else "ranked", competition(ranks))


@pytest.mark.parametrize("start", ["fresh", "own"])
def test_a_class_trains_votes_and_ranks_again(options: argparse.Namespace, start: str) -> None:
    store = Store(options.runs_dir / "nano" / "ours.sqlite")
    new_round(store, options, 1)
    items = store.items(1)
    assert len(items) == 12 and sum(item.common for item in items) == 3 and all(item.simulated for item in items)
    with pytest.raises(UserError, match="training needs 20 of 5: rank some more first"):
        work.train(store, options, work.class_run(options, 1), 1)
    rank(store, 4, 1)
    options.start = start
    name = work.class_run(options, 1)
    found = work.train(store, options, name, 1)
    store.set_training(1, name, start, found)
    folder = options.runs_dir / name
    assert name == "nano-ours-1" and not folder.with_name(f"{name}.new").exists()
    ppo, rm = load_checkpoint(folder / "ppo", "ppo"), load_checkpoint(folder / "rm", "rm")
    parents = [parent["stage"] for parent in rm.info["parents"]]
    assert ("rm" in parents) == (start == "own") and ("judge" in parents) == (start == "fresh")
    assert ppo.sha256 != load_checkpoint(options.runs_dir / "nano" / "ppo", "ppo").sha256
    others = found["others"]
    assert len(others["each"]) == 4 and 0 < others["all"]["share"] < 1
    student = store.next_duel(1, 1)
    assert student is not None and student.ours != student.theirs

    new_round(store, options, 2)
    assert store.setting("round") == "2" and len(store.items(2)) == 12 and store.labels(2) == []
    assert len(list(store.rankings(1))) == 48


def test_a_folder_that_is_not_the_classs_stays(options: argparse.Namespace) -> None:
    store = Store(options.runs_dir / "nano" / "ours.sqlite")
    new_round(store, options, 1)
    rank(store, 3, 1)
    mine = options.runs_dir / work.class_run(options, 1)
    mine.mkdir()
    (mine / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="is not this class's: rename it"):
        work.train(store, options, mine.name, 1)
    assert (mine / "note.txt").read_text() == "mine"
    assert json.loads(store.setting("work", "null")) is None
