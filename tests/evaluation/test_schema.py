"""A file of results is read as it was written, and anything else is one sentence."""

import math
from pathlib import Path

import pytest

from rlhf_mini.core.bootstrap import Estimate
from rlhf_mini.core.console import UserError
from rlhf_mini.core.files import write_json
from rlhf_mini.evaluation.schema import Point, PooledEvaluation, Study, read

DOCS = Path(__file__).parents[2] / "docs"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    point = Point(kl=0.1, proxy=Estimate(1, 0.5, 1.5), gold=Estimate(math.nan, math.nan, math.nan), n=4)
    write_json(tmp_path / "point.json", point)
    found = read(Point, tmp_path / "point.json", "")
    assert found.proxy == point.proxy and found.n == 4 and found.update is None and math.isnan(found.gold.mean)


def test_the_results_in_docs_can_be_read() -> None:
    assert read(PooledEvaluation, DOCS / "evaluate.json", "").stages["ppo"]["gold"].mean > 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist yet: run `make overopt`"),
        ("[]", "is damaged, or was not written by this project: make it again"),
        ('{"format": 2, "prompts": 1, "scenarios": [], "provenance": {}}', "was written by another version"),
        ('{"format": 1, "prompts": 1, "scenarios": [{}], "provenance": {}}', "was written by another version"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, content: str | None, sentence: str) -> None:
    path = tmp_path / "overopt.json"
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        read(Study, path, "run `make overopt`")
