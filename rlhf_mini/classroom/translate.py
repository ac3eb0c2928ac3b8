"""Which cells of a lesson lack a translation, or have a stale one.

python -m rlhf_mini.classroom.translate 3                    # lists them
python -m rlhf_mini.classroom.translate 3 --stamp quiz       # after the Korean of that cell was reviewed
python -m rlhf_mini.classroom.translate 3 --stamp all
"""

import argparse

from rlhf_mini.classroom import notebook
from rlhf_mini.core.console import UserError, console, run
from rlhf_mini.core.translation import problems, read_pieces, stamp


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_mini.classroom.translate", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("number", type=int, metavar="N", help="which lesson")
    parser.add_argument("--language", choices=notebook.LANGUAGES[1:], default="ko", help="(default: ko)")
    parser.add_argument("--stamp", nargs="+", default=[], metavar="ID", help="cells whose translation was reviewed")
    arguments = parser.parse_args()
    source = notebook.source_of(arguments.number)
    path = notebook.translation_of(source, arguments.language)
    english = notebook.prose(notebook.read(source))
    if not path.is_file():
        raise UserError(
            f"{path} is missing: write a line <!-- english: {next(iter(english))} ? --> and its translation"
        )
    if arguments.stamp:
        stamp(path, english, list(read_pieces(path)) if arguments.stamp == ["all"] else arguments.stamp)
    found = problems(english, read_pieces(path))
    for one in found:
        console.print(one, soft_wrap=True)
    if not found:
        console.print("every cell is translated")


if __name__ == "__main__":
    run(main)
