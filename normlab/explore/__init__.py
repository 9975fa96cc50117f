"""Interactive figures: state in Python, computation and view in the page.

Each is an anywidget in a module of its own, which a chapter imports, for
example `from normlab.explore.drag_batch import DragBatch`.
"""
from normlab.explore.base import Figure

__all__ = ["Figure"]
