"""The museum's labels, and docs/museum.md against what was measured."""

import json
import re
from pathlib import Path

import pytest

from rlhf_mini.museum import show
from rlhf_mini.museum.bugs import ALL, BUGS, RM, SFT, Bug

ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "docs" / "museum.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("bug", ALL, ids=lambda bug: bug.name)
def test_labels_are_complete(bug: Bug) -> None:
    title, _, *rest = bug.paragraphs
    assert title.endswith(".") and len(title) < 90
    assert [part.partition(":")[0] for part in rest] == ["Look at", "Seen", "Exercise"]
    assert re.search(r"https://(github\.com/[\w-]+/[\w-]+/(issues|pull)/\d+|arxiv\.org/abs/\d)", rest[1])
    assert bug.trained in (("ppo",), RM, SFT, ("sft", "ppo"))


@pytest.mark.parametrize("bug", ALL, ids=lambda bug: bug.name)
def test_the_doctor_finds_what_the_label_says(bug: Bug) -> None:
    """In the runs of full size: each named check is content with the healthy run and not with the buggy one."""
    found = {each["check"]: (each["healthy"], each["buggy"]) for each in FOUND["bugs"][bug.name]["doctor"]}
    new = {
        check for check, (healthy, buggy) in found.items() if healthy in (None, "pass") and buggy in ("warn", "fail")
    }
    assert set(bug.checks) <= new
    assert bug.checks or not new  # a bug of which the label says that no check finds it


def test_the_page_has_what_was_measured() -> None:
    page = (ROOT / "docs" / "museum.md").read_text(encoding="utf-8")
    assert "\n".join(show.page_table(FOUND)) in page
    assert list(FOUND["bugs"]) == list(BUGS)
    for bug in ALL:
        assert f"`{bug.name}`" in page
