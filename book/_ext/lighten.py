"""Take weight off the built pages.

- The theme loads all of Font Awesome on every page, as a script and as
  fonts, 800 kB compressed: leave in only the icons that are shown.
- Figures are flat colours: 256 of them are enough, at half the bytes.
"""

import re
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from PIL import Image

ICON = re.compile(
    r'(?P<name>"[\w-]+"|\w+):\[\d+,\d+,\[(?P<aliases>[^\]]*)\],'
    r'"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?')
RULE = re.compile(
    r'(?P<names>\.fa-[\w-]+:before(?:,\.fa-[\w-]+:before)*)'
    r'\{content:"(?P<glyph>[^"]*)"\}')
ESCAPE = re.compile(r"\\([0-9a-f]{2,5}) ?")
PRIVATE = range(0xE000, 0xF900)  # where Unicode leaves room for icons


def lighten(app, error):
    """Rewrite the built site's copies of icons and figures."""
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    shown = names_shown(out)
    trim_script(out / "_static/scripts/fontawesome.js", shown)
    kept = trim_styles(out / "_static/styles", shown)
    for font in out.glob("_static/vendor/fontawesome/webfonts/*.woff2"):
        trim_font(font, kept)
    for path in out.glob("_images/*.png"):
        reduce_colours(path)


def names_shown(out):
    """Names of the icons that pages, or the theme's scripts, show."""
    files = [*out.rglob("*.html"), *out.glob("_static/*.js"),
             *out.glob("_static/scripts/*theme.js")]
    return {name for path in files for name in re.findall(
        r"fa-([a-z0-9-]+)", path.read_text(encoding="utf-8"))}


def trim_script(path, shown):
    """Drop icons from the script that turns them into pictures."""
    def keep(match):
        names = {match["name"].strip('"')}
        names |= set(re.findall(r'"([\w-]+)"', match["aliases"]))
        return match.group() if names & shown else ""

    text = path.read_text(encoding="utf-8")
    path.write_text(ICON.sub(keep, text), encoding="utf-8")
    Path(f"{path}.map").unlink(missing_ok=True)


def trim_styles(folder, shown):
    """Drop icons from the style sheets; return the code points that the
    sheets still show."""
    def keep(match):
        names = set(re.findall(r"\.fa-([\w-]+):before", match["names"]))
        return match.group() if names & shown else ""

    kept = set()
    for path in folder.glob("*.css"):
        text = RULE.sub(keep, path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
        points = {int(code, 16) for code in ESCAPE.findall(text)}
        points |= set(map(ord, text))
        kept |= {p for p in points if p in PRIVATE}
    return kept


def trim_font(path, kept):
    """Keep these code points of an icon font, unless that was done."""
    font = TTFont(path)
    if not set(font.getBestCmap()) - kept:
        return
    options = Options(flavor="woff2")
    subset = Subsetter(options)
    subset.populate(unicodes=kept)
    subset.subset(font)
    font.flavor = "woff2"
    font.save(path)


def reduce_colours(path):
    """Store a figure with a palette of 256 colours, unless it has one."""
    with Image.open(path) as image:
        if image.mode != "P":
            flat = image.convert("RGB").quantize(
                256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            flat.save(path, optimize=True)


def setup(app):
    """Run when everything else is written."""
    app.connect("build-finished", lighten, priority=900)
    return {"version": "1", "parallel_read_safe": True,
            "parallel_write_safe": True}
