"""A lesson's page opens without a network and shows what a model wrote as text."""

import re

import nbformat
import pytest
from nbformat import NotebookNode

from rlhf_mini.classroom.page import index, to_html, with_mathml

TITLES = [(0, "Zero", "0_zero.html"), (3, "Three <b>", "3_three.html")]


@pytest.fixture
def page() -> str:
    hostile = nbformat.v4.new_output("stream", text="<script>alert(1)</script>")
    cells = [
        nbformat.v4.new_markdown_cell("# Three\n\nThe formula $a < b$ and `$HOME`.", id="title"),
        nbformat.v4.new_code_cell("1 < 2", id="code", outputs=[hostile]),
        nbformat.v4.new_code_cell("3", id="answer", metadata={"tags": ["answer"]}, outputs=[hostile]),
    ]
    return to_html(NotebookNode(nbformat.v4.new_notebook(cells=cells)), "ko", TITLES, "3_three.html")


def test_it_loads_nothing(page: str) -> None:
    assert not re.search(r"<(script|link|iframe)\b", page)
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert "default-src 'none'" in page


def test_output_is_text(page: str) -> None:
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


def test_it_is_in_its_language_and_links_to_the_others(page: str) -> None:
    assert '<html lang="ko">' in page
    assert 'href="0_zero.html"' in page and 'href="../en/3_three.html"' in page
    assert '<a aria-current="page" href="3_three.html">' in page
    assert "<title>Three &lt;b&gt;</title>" in page


def test_an_answer_is_folded(page: str) -> None:
    assert page.count('<details class="answer">') == 1
    assert page.index("alert(1)") < page.index('<details class="answer">') < page.rindex("alert(1)")


def test_formulas_are_mathml_and_code_is_left_alone(page: str) -> None:
    assert "<math" in page and "$HOME" in page
    assert 'display="block"' in with_mathml("$$x^2$$")
    assert with_mathml("```\n$x$ and $y$\n```") == "```\n$x$ and $y$\n```"


def test_the_index_escapes_titles() -> None:
    made = index("en", TITLES)
    assert '<li value="3"><a href="3_three.html">Three &lt;b&gt;</a></li>' in made
