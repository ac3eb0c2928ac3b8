"""Whether the report's texts are translated: what texts/ko.yaml lacks, or has of an English text that has changed.

    python -m rlhf_mini.report.translation
    python -m rlhf_mini.report.translation --stamp wins.title    # after its translation was reviewed

The English texts are those of texts/en.yaml and the titles that the evaluation gives its measurements.
"""

import argparse
from pathlib import Path

from rlhf_mini.core.console import run
from rlhf_mini.core.texts import read_texts, review

FOLDER = Path(__file__).parent / "texts"


def english_texts() -> dict[str, str]:
    """All texts to translate, by key."""
    return read_texts(FOLDER / "en.yaml") | titles_of_measurements()


def titles_of_measurements() -> dict[str, str]:
    """What evaluate.json and overopt.json call the things they measure; the page looks them up with `Texts.of`."""
    from rlhf_mini.evaluation.answers import JUDGES, PAIRS
    from rlhf_mini.evaluation.baselines import BASELINES
    from rlhf_mini.evaluation.microscope import MEASURES
    from rlhf_mini.evaluation.overopt.__main__ import PROXY, TITLES, OveroptOptions
    from rlhf_mini.evaluation.probes import PROBES
    from stages.rm.content import TITLES as CONTENT

    described = {
        **{f"baseline.{name}": (one.title, one.how) for name, one in BASELINES.items()},
        **{f"probe.{name}": (one.title, one.how) for name, one in PROBES.items()},
        **{f"measure.{name}": one for name, one in MEASURES.items()},
    }
    prompts = OveroptOptions().few_prompts
    return {
        **{f"judge.{name}": title for name, title in JUDGES.items()},
        **{f"pair.{name}": title for name, title in PAIRS.items()},
        **{f"content.{name}": title for name, title in CONTENT.items()},
        **{f"better.{one.better}": one.better for one in PROBES.values()},
        **{f"{key}.title": title for key, (title, _) in described.items()},
        **{f"{key}.how": how for key, (_, how) in described.items()},
        **{f"scenario.{name}.title": title.format(prompts=prompts) for name, (title, _) in TITLES.items()},
        **{f"scenario.{name}.what": what for name, (_, what) in TITLES.items()},
        "scenario.proxy": PROXY,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_mini.report.translation",
        description="Lists the report's texts whose Korean translation is missing or stale.",
    )
    parser.add_argument("--stamp", nargs="+", default=[], metavar="KEY", help="texts whose translation was reviewed")
    review(english_texts(), FOLDER / "ko.yaml", parser.parse_args().stamp)


if __name__ == "__main__":
    run(main)
