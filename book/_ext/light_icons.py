"""Leave out of the theme's icon script the icons that no page shows.

The theme loads all of Font Awesome, 540 kB compressed, on every page.
"""

import re
from pathlib import Path

ICON = re.compile(
    r'(?P<name>"[\w-]+"|\w+):\[\d+,\d+,\[(?P<aliases>[^\]]*)\],'
    r'"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?')


def trim(app, error):
    """Rewrite the built site's copy of the script."""
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    scripts = [*out.glob("_static/scripts/*.js"), *out.glob("_static/*.js")]
    pages = [*out.rglob("*.html"), *(
        p for p in scripts if p.name != "fontawesome.js")]
    shown = {name for page in pages for name in re.findall(
        r"fa-([a-z0-9-]+)", page.read_text(encoding="utf-8"))}

    def keep(match):
        names = {match["name"].strip('"')}
        names |= set(re.findall(r'"([\w-]+)"', match["aliases"]))
        return match.group() if names & shown else ""

    script = out / "_static/scripts/fontawesome.js"
    text = script.read_text(encoding="utf-8")
    script.write_text(ICON.sub(keep, text), encoding="utf-8")
    Path(f"{script}.map").unlink(missing_ok=True)


def setup(app):
    """Trim when everything else is written."""
    app.connect("build-finished", trim, priority=900)
    return {"version": "1", "parallel_read_safe": True,
            "parallel_write_safe": True}
