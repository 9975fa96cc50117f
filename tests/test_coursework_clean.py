"""Nothing that a student writes acts."""

import re
import time

import pytest
from gradebook_cases import ATTACKS, QUIET, Tags
from nbconvert.filters.markdown_mistune import markdown2html_mistune

from coursework import clean


@pytest.mark.parametrize("attack", ATTACKS)
def test_markdown_does_nothing_where_nbgrader_renders_it(attack):
    source = clean.safe_markdown(f"Hello. {attack}\n\nEnd.")
    page = markdown2html_mistune(source)
    seen = Tags(page)
    assert seen.tags <= QUIET
    for name, value in seen.attributes:
        assert name in ("class", "id", "href")
        assert name != "href" or value.startswith(("http", "#"))
    outside = re.sub(r"(?s)<(pre|code)\b.*?</\1>", "", page)
    assert not re.search(r"\\(href|style|class|require|unicode|def)\b",
                         outside)
    assert "Hello." in page and "End." in page


@pytest.mark.parametrize("text", [
    "A *b* and **c**, `x < y`, $a < b$ and $$\\frac{1}{m}\\sum_i x_i$$",
    "1. one\n2. two\n\n> quoted\n\n```python\nif a < b: pass\n```",
    "| a | b |\n|---|---|\n| 1 | 2 |", "See http://example.org/a.",
    "\\begin{align} a &= b \\end{align}"])
def test_honest_markdown_stays_as_it_is(text):
    assert clean.safe_markdown(text) == text


@pytest.mark.parametrize("inside", [
    "</div>", "<b>x</b>", "[x](javascript:alert(1))", "![t][r]\n\n[r]: x.png"])
def test_what_only_seems_to_be_code_is_fenced(inside):
    text = f"\\`{inside}`"
    assert clean.safe_markdown(text) == clean.fence(text)


def test_long_or_hard_text_is_quick():
    start = time.monotonic()
    for text in ("[" * 50_000, "`a``b" * 2000, "\\\\[" * 3000, "$" * 9999,
                 "> " * 4999, "a " * 4000 + " " * 1000, "**a_" * 2499):
        assert clean.safe_markdown(text)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("value, made", [
    ("=1+1", "'=1+1"), ("+1+1", "'+1+1"), ("-2", "-2"), ("-", "-"),
    ("@SUM(1)", "'@SUM(1)"), ("\t=1", "'\t=1"), (" =1", "' =1"),
    ("-2+3", "'-2+3"), ("12.5", "12.5"), ("Ada", "Ada"), (None, "")])
def test_formulas_are_no_formulas(value, made):
    assert clean.inert(value) == made
