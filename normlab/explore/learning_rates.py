"""An interactive figure: learning rate, depth and step against the test
accuracy of networks with and without batch normalization."""

from pathlib import Path

import numpy as np
import traitlets

from normlab.explore.base import Figure

METHODS = ("none", "BN")
INITS = ("default", "He")


def compact(record):
    """What the figure shows of the record "learning-rates": the rates, the
    checkpoints, and for "He 8 BN" and the like, at each rate, the mean, the
    least and the greatest test accuracy of the seeds at each checkpoint, in
    tenths of a percent, and the mean training loss of the stretch of steps
    before it, None where a seed's isn't finite."""
    config, runs = record["configuration"], {}
    steps, stretch = config["checkpoints"], config["stretch"]
    for init in config["inits"]:
        for depth in config["depths"]:
            for method in config["methods"]:
                runs[f"{init} {depth} {method}"] = [
                    seeds([p for p in record["points"]
                           if p["init"] == init and p["depth"] == depth
                           and p["method"] == method and p["lr"] == lr],
                          steps, stretch)
                    for lr in config["learning_rates"]]
    return {"rates": config["learning_rates"], "steps": steps, "runs": runs}


def seeds(points, steps, stretch):
    """One rate's entry in `compact`."""
    right = 1000 * np.array([p["accuracy"] for p in points])
    tenths = np.rint([right.mean(axis=0), right.min(axis=0),
                      right.max(axis=0)]).astype(int)
    losses = []
    for step in steps:
        if step >= stretch:
            found = [p["loss"][step // stretch - 1] for p in points]
            losses.append(None if None in found else
                          float(f"{np.mean(found):.3g}"))
        else:
            losses.append(None)
    return {"right": tenths.tolist(), "loss": losses}


def measured():
    """`compact` of the book's record."""
    from normlab.lab.records import read_record

    return compact(read_record("learning-rates"))


class LearningRates(Figure):
    """Test accuracy over the steps at one learning rate, and over the
    rates at one step, with and without batch normalization.

    sweep: as `compact` returns it; by default from the book's record.
    """

    _esm = Path(__file__).with_suffix(".js")
    lr = traitlets.Float(1.0).tag(sync=True)
    depth = traitlets.Int(8).tag(sync=True)
    step = traitlets.Int(600).tag(sync=True)
    init = traitlets.Enum(INITS, "He").tag(sync=True)
    sweep = traitlets.Dict().tag(sync=True)

    def __init__(self, sweep=None, **state):
        super().__init__(sweep=measured() if sweep is None else sweep,
                         **state)
