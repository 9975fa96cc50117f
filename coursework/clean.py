"""Makes text that nobody vouches for harmless, wherever it is shown.

What students write, and what the grader quotes from it: for people's eyes
(clean, fence), as Markdown in a notebook (safe_markdown), as HTML in a page
(safe_html), in a spreadsheet's cell (inert), as a folder's name (unfit).
The grader uses it too: nothing beyond the standard library is imported
before it is needed.
"""

import re
from html.parser import HTMLParser

LONG_TEXT, LONG_CELL, LONG_NOTE = 10_000, 100_000, 500
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f"
                    "\u202a-\u202e\u2060-\u2069\ufeff]")
# What can't be in a folder's name, a glob, a link, HTML and JavaScript,
# since nbgrader puts students' ids into each of them as they are.
UNFIT = re.compile(r"""[\x00-\x1f\x7f-\x9f/\\"<>&{}\[\]*?|:;%#`$^]|^[.~ -]|"""
                   "[\u200b-\u200f\u2028-\u202e\u2060-\u2069]| $|^$")
# What MathJax and KaTeX understand beyond formulas.
TEX = re.compile(
    r"\\(?=(?:href|url|require|class|cssId|style|unicode|html\w*|data|"
    r"includegraphics|input|bbox|mmlToken|texttip|tooltip|toggle|let|[gex]?"
    r"def|futurelet|global|(?:re)?new(?:command|environment)|providecommand|"
    r"DeclareMathOperator|Newextarrow|csname|catcode)(?![A-Za-z]))")
LINK = re.compile(r"(?:https?://|mailto:|#)", re.I)
TAGS = frozenset(
    "a abbr b blockquote br caption code dd del details div dl dt em "
    "figcaption figure h1 h2 h3 h4 h5 h6 hr i img input kbd li mark ol p "
    "pre q s samp small span strong sub summary sup table tbody td tfoot th "
    "thead tr u ul var".split())


def clean(text, longest=LONG_CELL):
    """Text that can be written and read: what can't be seen is spelt out,
    and what is too long is cut."""
    text = str(text).replace("\r\n", "\n").replace("\r", "\n")
    text = text.encode("utf-8", "replace").decode()
    text = UNSEEN.sub(lambda m: f"\\u{ord(m[0]):04x}", text)
    if len(text) > longest:
        text = text[:longest] + "\n[cut here: it was longer]"
    return text


def unfit(student):
    """Whether nbgrader can't use a student's name."""
    return bool(UNFIT.search(student)) or len(student.encode()) > 200


def inert(value):
    """A cell's text that no spreadsheet takes for a formula."""
    text = "" if value is None else f"{value:g}" if isinstance(
        value, float) else str(value)
    risky = text.lstrip()[:1] in ("=", "+", "-", "@") or text[:1] in "\t\r\n"
    if text and risky and text != "-" and not re.fullmatch(
            r"[+-]?\d+(?:[.,]\d+)?", text):
        return "'" + text
    return text


def fence(text):
    """Text as a Markdown block in which nothing means anything."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def safe_markdown(source):
    """Markdown of a student that is safe in whatever renders it: no HTML,
    no link but a bare address, no image, no TeX that acts. What can't be
    made so is shown as plain text."""
    if len(source) <= LONG_TEXT:
        made = disarmed(source)
        if harmless(made):
            return made
    return fence(source)


def disarmed(source):
    """Markdown without HTML, links and images, except in code."""
    parts = re.split(r"(`+|~{3,}|\$+)", source)
    partner, latest = {}, {}
    for i in range(len(parts) - 2, 0, -2):
        partner[i] = latest.get(parts[i])
        latest[parts[i]] = i
    made, i = [], 0
    while i < len(parts):
        end = partner.get(i)
        inside = "".join(parts[i:(end or i) + 1])
        if end is None:
            inside = inside.replace("<", "&lt;").replace(
                "](", "]&#40;").replace("]:", "]&#58;")
        if end is None or parts[i][0] == "$":
            inside = TEX.sub(r"\\ ", inside)
        made.append(inside)
        i = (end or i) + 1
    return "".join(made)


def harmless(source):
    """Whether nbconvert makes nothing of Markdown but text."""
    from nbconvert.filters.markdown_mistune import (
        IPythonRenderer,
        MarkdownWithMath,
    )

    def refuse(*_):
        raise ValueError

    def code(text, info=None):
        # nbconvert writes what is called mermaid into the page as it is.
        return refuse() if "mermaid" in (info or "") else ""

    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    renderer.block_html = renderer.inline_html = renderer.image = refuse
    renderer.block_code = code
    try:
        page = MarkdownWithMath(renderer=renderer).render(source)
    except Exception:  # a parser that fails on it is reason enough
        return False
    words = Words()
    words.feed(page)
    words.close()
    return words.ok and not TEX.search("".join(words.found))


class Words(HTMLParser):
    """The words of a page outside of code; not ok if anything could act or
    load."""

    def __init__(self):
        super().__init__()
        self.found, self.depth, self.ok = [], 0, True

    def handle_starttag(self, tag, attrs):
        """Note code, and what could act."""
        self.depth += tag in ("code", "pre")
        self.ok &= tag in TAGS - {"img"} and all(
            allowed(tag, name, value or "") for name, value in attrs)

    def handle_endtag(self, tag):
        """Note the end of code."""
        self.depth -= tag in ("code", "pre")

    def handle_data(self, data):
        """Keep words that MathJax would look at."""
        if not self.depth:
            self.found.append(data)


def allowed(tag, name, value):
    """Whether an attribute may stay in a page."""
    if name == "href":
        return tag == "a" and bool(LINK.match(value))
    if name == "src":
        return tag == "img" and bool(re.match(
            r"data:image/(?:png|jpeg|gif|webp);base64,", value))
    if tag == "input" and name != "class":
        return name in ("checked", "disabled") or (
            name, value) == ("type", "checkbox")
    return name in ("class", "title", "alt", "width", "height", "colspan",
                    "rowspan", "align", "open", "start")


def safe_html(page):
    """HTML with nothing in it that acts or loads."""
    import bleach

    return bleach.clean(page, tags=TAGS, attributes=allowed,
                        strip_comments=True,
                        protocols={"http", "https", "mailto", "data"})
