"""A lesson's notebook as one HTML page that opens without a network: no script, plots inside, formulas as MathML."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

TEMPLATES = Path(__file__).parent / "templates"
WORDS = {
    "en": {
        "contents": "All lessons", "answer": "Guess first, then open: what happened", "other": "ko",
        "other_name": "한국어", "title": "Eight lessons on RLHF",
    },
    "ko": {
        "contents": "전체 수업", "answer": "먼저 예측해 보고 열어 보세요: 실제 결과", "other": "en",
        "other_name": "English", "title": "RLHF 수업 여덟 편",
    },
}  # fmt: skip
# Code, in fences or in backticks, is left alone; of the formulas, those in two dollars stand on a line of their own.
CODE_OR_FORMULA = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def with_mathml(markdown: str) -> str:
    """LaTeX between dollars becomes MathML, which browsers show by themselves; MathJax would have to be loaded.

    >>> with_mathml("`$HOME` and $x$").startswith("`$HOME` and <math")
    True
    """

    def formula(found: re.Match[str]) -> str:
        code, block, inline = found.groups()
        return code if code else convert(block or inline, display="block" if block else "inline")

    return CODE_OR_FORMULA.sub(formula, markdown)


def style() -> str:
    """The page's, with the colours of the code for light and dark."""
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    page = (TEMPLATES / "lesson" / "page.css").read_text(encoding="utf-8")
    bare = ".highlight { background: none; }"
    return f"{page}\n{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n{bare}"


def to_html(notebook: NotebookNode, language: str, titles: Sequence[tuple[int, str, str]], file: str) -> str:
    """The page.

    Args:
        notebook: executed; its Markdown is of the `language`.
        titles: of all lessons: number, title and the page's file, for the links.
        file: this page's.
    """
    formulas = NotebookNode(notebook | {"cells": [NotebookNode(cell) for cell in notebook.cells]})
    for cell in formulas.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
    exporter = HTMLExporter(template_name="lesson", extra_template_basedirs=[str(TEMPLATES)])
    resources = {
        "language": language,
        "words": WORDS[language],
        "style": style(),
        "file": file,
        "title": next(title for _, title, name in titles if name == file),
        "pages": [{"number": number, "file": name, "here": name == file} for number, _, name in titles],
    }
    page, _ = exporter.from_notebook_node(formulas, resources=resources)
    return str(page)


def index(language: str, titles: Sequence[tuple[int, str, str]]) -> str:
    """The page that lists the lessons."""
    words = WORDS[language]
    items = "\n".join(f'<li value="{n}"><a href="{file}">{html.escape(title)}</a></li>' for n, title, file in titles)
    return f"""<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{words["title"]}</title>
<style>
{style()}
</style>
</head>
<body>
<nav><ul><li><a href="../{words["other"]}/index.html" lang="{words["other"]}">{words["other_name"]}</a></li></ul></nav>
<main>
<h1>{words["title"]}</h1>
<ol start="0">
{items}
</ol>
</main>
</body>
</html>
"""
