"""What Markdown text links to, and what can be linked to in it."""

import re

from markdown_it import MarkdownIt

FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.M | re.S)
CODE = re.compile(r"`[^`\n]*`")
BLOCK = re.compile(r"\$\$.*?\$\$", re.S)
INLINE = re.compile(r"(?<!\\)\$[^$\n]+\$")
NUMBER = re.compile(r"\((\d+\.\d+)\)")


def slug(heading):
    """The anchor that GitHub and the site make of a heading."""
    text = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text.strip()).replace(" ", "-")


def anchors(text):
    """Anchors in a page: slugs of its headings, and ids set by hand."""
    plain = FENCE.sub("", text)
    found = {slug(h) for h in re.findall(r"^#+ (.*)$", plain, re.M)}
    found |= set(re.findall(r"\bid=\"([^\"]+)\"", plain))
    return found | set(re.findall(r"^\(([\w-]+)\)=$", plain, re.M))


def links(text):
    """Targets of the page's links that stay within the book."""
    md = MarkdownIt("commonmark")
    text = INLINE.sub("", BLOCK.sub("", text))
    found = {child.attrs["href"] for token in md.parse(text)
             for child in token.children or [] if child.type == "link_open"}
    found |= set(re.findall(r"href=\"([^\"]+)\"", FENCE.sub("", text)))
    return sorted(t for t in found
                  if t and not re.match(r"(https?|mailto):", t))


def tags(text):
    """Numbers of the page's equations, in order."""
    return re.findall(r"\\tag\{(\d+\.\d+)\}", text)


def equations(text):
    """Numbers of the equations that the page's words refer to."""
    for part in (FENCE, BLOCK, CODE, INLINE):
        text = part.sub(" ", text)
    return set(NUMBER.findall(text))
