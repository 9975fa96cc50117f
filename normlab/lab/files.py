"""Files that are there whole or not at all."""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path):
    """A path to write to in place of `path`; if all goes well the file is
    then renamed, so that a reader sees the old one or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path, value):
    """Write a value as JSON, whole or not at all. Keys become strings."""
    value = json.loads(json.dumps(value))
    with replacing(path) as aside:
        aside.write_text(layout(value) + "\n", encoding="utf-8")


def layout(value, depth=0):
    """JSON with a line for each entry of a dict, and lists of numbers on
    one line."""
    pad = "  " * (depth + 1)
    if isinstance(value, dict) and value:
        rows = [f"{pad}{json.dumps(k)}: {layout(v, depth + 1)}"
                for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + pad[2:] + "}"
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        rows = [pad + layout(v, depth + 1) for v in value]
        return "[\n" + ",\n".join(rows) + "\n" + pad[2:] + "]"
    return json.dumps(value)


def digest(value):
    """A short fingerprint of anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
