"""The evidence page, and links to claims, equations and citations.

- The page book/evidence lists every claim with what its chapter measured,
  read from the notebooks' outputs; it stands where the page says
  ```{evidence}```, and assets/evidence.js filters it.
- A claim's printed line gets the anchor `claim-<id>`.
- An equation with \\tag{3.4} gets the anchor `equation-3-4`, and "(3.4)"
  in the text of any page becomes a link to it.
- A chapter's number is its file's.
- Links such as bibliography.md#key and evidence.md#claim-id resolve.
"""

import json
import re
from pathlib import Path

import yaml
from docutils import nodes
from pybtex.database import parse_file
from sphinx_external_toc.collectors import (
    TocTreeCollectorWithStyles as TocTreeCollector,
)

KEY = "normlab.claim"
CLAIM = re.compile(r"\[([a-z0-9-]+)\] holds: ")
TAG = re.compile(r"\\tag\{(\d+\.\d+)\}")
CHAPTER = re.compile(r"notebooks/(\d+)-")
NUMBER = re.compile(r"\((\d+\.\d+)\)")
EVIDENCE, MARK = "book/evidence", "```{evidence}\n```"
VERDICTS = {"true": "True", "partly": "Partly true", "false": "False"}


def measured(root):
    """What the chapters measured: {claim id: its printed line}."""
    found = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            for out in cell.get("outputs", []):
                record = out.get("metadata", {}).get(KEY)
                if record:
                    text = "".join(out["data"]["text/plain"])
                    found[record["id"]] = CLAIM.sub("", text.strip("'"))
    return found


def title(root, chapter):
    """A chapter's title."""
    path = root / "notebooks" / f"{chapter}.ipynb"
    first = json.loads(path.read_text("utf-8"))["cells"][0]["source"]
    return "".join(first).split("\n")[0].lstrip("# ")


def authors_and_year(entry):
    """How a text names an entry of the bibliography."""
    names = [" ".join(map(str, p.rich_prelast_names + p.rich_last_names))
             for p in entry.persons.get("author", [])]
    who = (names[0] if len(names) == 1 else " and ".join(names)
           if len(names) == 2 else f"{names[0]} et al." if names
           else entry.fields.get("organization", entry.key))
    return ", ".join(filter(None, [who, entry.fields.get("year")]))


def entry_lines(e, measured_line, bib):
    """One claim of the evidence page, in Markdown. Its classes are what the
    page's filter goes by."""
    name, chapter = e["id"], e["chapter"]
    cited = "; ".join(
        f"[{authors_and_year(bib[key])}](bibliography.md#{key})"
        for key in e.get("cite", []))
    classes = ["claim-entry", f"verdict-{e['verdict']}",
               f"chapter-{int(chapter[:2])}"]
    if e.get("popular"):
        classes.append("popular")
    return [
        f"````{{container}} {' '.join(classes)}", f"(claim-{name})=", "",
        f"**{VERDICTS[e['verdict']]}.** {e['statement']}", "",
        f"- Who says it: {e['who']}",
        *([f"- See: {cited}"] if cited else []),
        f"- Measured: {measured_line} "
        f"([the cell](../notebooks/{chapter}.ipynb#claim-{name}))",
        *([f"- Published: {e['published']}"] if e.get("published") else []),
        "````", ""]


def popular_table(entries):
    """The popular claims, numbered, in a Markdown table."""
    found = sorted((e for e in entries if e.get("popular")),
                   key=lambda e: e["popular"])
    if not found:
        return []
    return ["## What people say most often", "",
            "| | They say | Verdict |", "|---|---|---|",
            *(f"| {e['popular']} | [{e['statement']}](#claim-{e['id']}) | "
              f"{VERDICTS[e['verdict']]} |" for e in found), ""]


def evidence(root):
    """The evidence page's lists, in Markdown."""
    bib = parse_file(root / "book/references.bib").entries
    registry = (root / "book/evidence.yml").read_text("utf-8")
    entries = yaml.safe_load(registry) or []
    values, lines = measured(root), popular_table(entries)
    for chapter in sorted({e["chapter"] for e in entries}):
        number = int(chapter[:2])
        lines += [f"## Chapter {number}: {title(root, chapter)}", ""]
        for e in (e for e in entries if e["chapter"] == chapter):
            lines += entry_lines(e, values[e["id"]], bib)
    return "\n".join(lines)


def insert_evidence(app, docname, source):
    """Put the tables where the page says so."""
    if docname == EVIDENCE:
        root = Path(app.srcdir)
        source[0] = source[0].replace(MARK, evidence(root))


def evidence_is_stale(app, env, added, changed, removed):
    """Read the evidence page again when what it is made of has changed."""
    root = Path(app.srcdir)
    key = [measured(root), (root / "book/evidence.yml").read_text("utf-8")]
    old, env.book_evidence = getattr(env, "book_evidence", None), key
    return [EVIDENCE] if key != old and EVIDENCE in env.all_docs else []


def remember(app, doctree):
    """Give claims and equations their anchors, and note them."""
    env = app.env
    doc = env.docname
    slugs = dict(env.metadata[doc].get("myst_slugs", {}))
    for block in doctree.findall(nodes.literal_block):
        match = CLAIM.match(block.astext().strip("'"))
        if match and doc.startswith("notebooks/"):
            block["ids"].append(f"claim-{match[1]}")
            block["classes"].append("claim")
            slugs[f"claim-{match[1]}"] = (0, f"claim-{match[1]}", "")
    equations = env.book_equations = getattr(env, "book_equations", {})
    for block in doctree.findall(nodes.math_block):
        match = TAG.search(block.astext())
        if match:
            name = "equation-" + match[1].replace(".", "-")
            block["ids"].append(name)
            equations[match[1]] = doc, name
    if doc == EVIDENCE:
        for name in doctree.nameids:
            if name.startswith("claim-"):
                slugs[name] = (0, doctree.nameids[name], "")
    if doc == "book/bibliography":
        for key in parse_file(Path(app.srcdir, "book/references.bib")).entries:
            slugs[key] = (0, key, "")
    env.metadata[doc]["myst_slugs"] = slugs


def forget(app, env, docname):
    """Drop the equations of a page that is read again."""
    env.book_equations = {
        number: place for number, place in getattr(
            env, "book_equations", {}).items() if place[0] != docname}


def link_equations(app, doctree, docname):
    """Turn each "(3.4)" in the text into a link to its equation."""
    skip = (nodes.reference, nodes.literal, nodes.literal_block, nodes.math,
            nodes.math_block, nodes.title, nodes.raw)
    for text in list(doctree.findall(nodes.Text)):
        parts, parent = NUMBER.split(str(text)), text.parent
        if len(parts) == 1 or any(
                isinstance(a, skip) for a in ancestors(text)):
            continue
        new = [nodes.Text(parts[0])]
        for number, rest in zip(parts[1::2], parts[2::2], strict=True):
            new += [link(app, docname, number), nodes.Text(rest)]
        parent.replace(text, new)


def ancestors(node):
    """The nodes above a node."""
    while node.parent is not None:
        node = node.parent
        yield node


def link(app, docname, number):
    """A link to an equation; plain text where there is none."""
    place = app.env.book_equations.get(number)
    if place is None:
        return nodes.Text(f"({number})")
    to, name = place
    uri = "" if to == docname else app.builder.get_relative_uri(docname, to)
    return nodes.reference("", f"({number})", internal=True,
                           refuri=f"{uri}#{name}")


def number_chapters(app):
    """Let each chapter have the number of its file: those that are not
    written yet leave a gap."""
    assign = TocTreeCollector.assign_section_numbers

    def assign_section_numbers(self, env):
        old = env.toc_secnumbers
        assign(self, env)
        for doc, sections in env.toc_secnumbers.items():
            number = CHAPTER.match(doc)
            if number is None:
                continue
            first = int(number[1])
            for name, parts in sections.items():
                sections[name] = parts and (first, *parts[1:])
            for node in (env.titles[doc],
                         *env.tocs[doc].findall(nodes.reference)):
                if node.get("secnumber"):
                    node["secnumber"] = [first, *node["secnumber"][1:]]
        return [doc for doc, sections in env.toc_secnumbers.items()
                if sections != old.get(doc)]

    TocTreeCollector.assign_section_numbers = assign_section_numbers


def setup(app):
    """Connect to the reading and the writing of pages."""
    app.connect("builder-inited", number_chapters)
    app.connect("env-get-outdated", evidence_is_stale)
    app.connect("source-read", insert_evidence)
    app.connect("env-purge-doc", forget)
    app.connect("doctree-read", remember)
    app.connect("doctree-resolved", link_equations)
    return {"version": "1", "parallel_read_safe": False,
            "parallel_write_safe": True}
