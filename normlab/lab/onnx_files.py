"""Networks as ONNX files: export, count operators, run."""

import contextlib
import io
import logging
import os
import warnings
from collections import Counter

# Read when ONNX Runtime is imported: send nothing, write nothing at home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def export(net, x, path, optimize=True):
    """Write a PyTorch network as an ONNX file that takes x; `optimize`
    lets the exporter improve the graph. Prints and warns of nothing."""
    import torch

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (warnings.catch_warnings(),
              contextlib.redirect_stdout(io.StringIO()),
              contextlib.redirect_stderr(io.StringIO())):
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (x,), str(path), dynamo=True,
                              verbose=False, optimize=optimize)
    finally:
        logger.setLevel(level)
    return path


def fold_constants(path, new_path):
    """Write a file in which all that doesn't depend on the input has been
    computed, and nothing else has changed."""
    import onnx
    from onnxscript import optimizer

    model = onnx.load(path)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    onnx.save(model, new_path)
    return new_path


def operators(path):
    """How many nodes of each operator a file has, as a Counter."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def run(path, x, optimise=True, save=None):
    """ONNX Runtime's output for x (a NumPy array), on the CPU, one thread.

    optimise: whether it may improve the graph when it loads it; save: a
    path to which it writes the graph that it runs.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL)
    if save is not None:
        options.optimized_model_filepath = str(save)
    session = ort.InferenceSession(str(path), options,
                                   providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]
