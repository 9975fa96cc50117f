"""What all interactive figures share: their style and where code lies."""

from pathlib import Path

import anywidget

HERE = Path(__file__).parent
CONTROLS = (HERE / "controls.js").read_text(encoding="utf-8")


class Figure(anywidget.AnyWidget):
    """An interactive figure that computes in the page, without a kernel.

    A subclass names its ES module, `_esm = Path(__file__).with_suffix(
    ".js")`, which exports `default { render }`, and declares its state as
    traits tagged `sync=True`. The root of its view has the class
    `nl-figure`; `explore.css` says which other classes there are, and
    `controls.js`, which stands before its module, has what sliders, menus
    and buttons share.
    """

    _css = (HERE / "explore.css").read_text(encoding="utf-8")

    def __init_subclass__(cls, **kwargs):
        # The text, not the path: anywidget may watch a path for changes,
        # and a thread that does so has no place in a reader's kernel.
        esm = cls.__dict__.get("_esm")
        if isinstance(esm, Path):
            cls._esm = CONTROLS + esm.read_text(encoding="utf-8")
        super().__init_subclass__(**kwargs)

    def __repr__(self):
        """The class's name alone, the same in every run."""
        return f"{type(self).__name__}()"
