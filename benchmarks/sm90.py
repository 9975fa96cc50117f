"""P7: the kernels compiled for a Hopper GPU, which needs none: registers,
spills and the width of loads and stores, as the compiler leaves them.
"""

import ast
import contextlib
import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

import normlab
from benchmarks import report
from normlab.lab.files import digest

REGISTERS = 96  # at most
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16",
            torch.bfloat16: "*bf16"}


class Case(NamedTuple):
    """What is compiled: forward and backward of a batch."""
    shape: tuple
    layout: str  # "planes" or "rows" (channels-last)
    dtype: str
    fused: str  # "", "relu", "add" or "add+relu"


LARGE = (256, 256, 56, 56)
CASES = [
    *(Case(LARGE, layout, dtype, fused) for layout in ("planes", "rows")
      for dtype in ("float32", "bfloat16")
      for fused in ("", "relu", "add+relu")),
    Case((1024, 1024, 14, 14), "planes", "float32", "relu"),  # 4 * 49
    Case((8192, 100), "rows", "float32", "relu"),
    Case((1024, 2048, 7, 7), "planes", "bfloat16", "relu"),  # odd: 49
    Case((4097, 65), "rows", "float32", "relu"),  # no power of two
]

# Atomic instructions and reductions in memory; REDUX is one of registers.
ATOMIC = re.compile(r"\b(?:ATOM\w*|RED[GS]?|REDAS|UBLKRED)\b")


def divisible(case):
    """Whether the values that lie side by side fill 128-bit loads."""
    inner = case.shape[1]
    if case.layout == "planes":
        inner = case.shape[2] * case.shape[3]
    size = getattr(torch, case.dtype).itemsize
    return inner * size % 16 == 0


def code_lines(path):
    """The lines of code in a file: no docstrings, comments, blank lines."""
    source = Path(path).read_text(encoding="utf-8")
    skip = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            text = node.body[0]
            skip.update(range(text.lineno, text.end_lineno + 1))
    return [(i, line) for i, line in enumerate(source.splitlines(), 1)
            if i not in skip and line.strip()
            and not line.strip().startswith("#")]


def code_digest():
    """A fingerprint of the kernels' code, to know an old record by."""
    path = Path(normlab.__file__).with_name("kernels.py")
    return digest([line for _, line in code_lines(path)])


def specialised(kernel, args, constants):
    """What Triton's launcher finds out about arguments: their types, which
    are constants, and which are divisible by 16 (fresh tensors are)."""
    given = dict(zip(kernel.arg_names, args)) | constants
    types, fixed, hints = {}, {}, {}
    for i, param in enumerate(kernel.params):
        name, value = param.name, given[param.name]
        one = type(value) is int and value == 1
        if param.is_constexpr or value is None or one:
            types[name], fixed[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[name] = POINTERS[value.dtype]
            hints[i,] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                hints[i,] = [["tt.divisibility", 16]]
    return types, fixed, hints


def compiled(kernel, args, constants):
    """One kernel's machine code for sm_90, measured."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: constants.pop(name)
               for name in ("num_warps", "enable_fp_fusion")}
    code = triton.compile(
        ASTSource(kernel, *specialised(kernel, args, constants)),
        target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage, sass = (subprocess.run(
            [tool, option, file.name], check=True, text=True,
            capture_output=True).stdout for option in ("-res-usage", "-sass"))
    widths = Counter(re.findall(r"\b(LDG|STG)\.E\S*?(?:\.(64|128|U16))? ",
                                sass))
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "atomics": len(ATOMIC.findall(sass)),
        "instructions": len(re.findall(r"/\*[0-9a-f]{4}\*/ +[^ ]", sass)),
        **{f"{'loads' if kind == 'LDG' else 'stores'}_{bits}":
           widths[kind, {"16": "U16", "32": ""}.get(bits, bits)]
           for kind in ("LDG", "STG") for bits in ("16", "32", "64", "128")},
    }


@contextlib.contextmanager
def fresh_cache():
    """Compile anew, and leave nothing in the user's cache."""
    old = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("TRITON_CACHE_DIR")
            if old is not None:
                os.environ["TRITON_CACHE_DIR"] = old


def run(cases=CASES):
    """Every kernel that each case launches, compiled; rows for the record.

    The launcher is replaced by the compiler, and the tensors are PyTorch's
    "meta" tensors, which have a shape and no memory.
    """
    from normlab import kernels

    rows, seen = [], {}

    def compile_instead(kernel, programs, x, *args, **sizes):
        sizes |= {"num_warps": 8, "enable_fp_fusion": True}
        types, fixed, hints = specialised(kernel, args, dict(sizes))
        key = kernel.__name__, str((types, fixed, hints))
        if key not in seen:
            seen[key] = compiled(kernel, args, sizes)
        rows.append({"kernel": kernel.__name__, **case._asdict(),
                     "programs": programs, **seen[key]})

    kept = kernels.launch, kernels.usable
    kernels.launch, kernels.usable = compile_instead, lambda x: True
    try:
        with fresh_cache():
            for case in cases:
                train_step(kernels, case)
    finally:
        kernels.launch, kernels.usable = kept
    return rows


def train_step(kernels, case):
    """Call forward and backward as a training step would."""
    memory = (torch.channels_last if case.layout == "rows"
              and len(case.shape) == 4 else torch.contiguous_format)
    x = torch.empty(case.shape, dtype=getattr(torch, case.dtype),
                    device="meta", memory_format=memory)
    weight, bias = torch.empty((2, case.shape[1]), device="meta")
    relu = "relu" in case.fused
    residual = torch.empty_like(x) if "add" in case.fused else None
    _, shift, rest, _, inv_std = kernels.forward(
        x, weight, bias, 1e-5, relu, residual)
    kernels.backward(torch.empty_like(x), x, weight, bias, shift, rest,
                     inv_std, relu, residual)


def meets(row):
    """Whether a row keeps P7: no spills, few registers, and every load and
    store of the tensors 128 bits wide where the sizes allow it."""
    small = (row["registers"] <= REGISTERS and row["spills"] == 0
             and row["stack_bytes"] == 0)
    case = Case(*(row[field] for field in Case._fields))
    if row["kernel"] == "merge_kernel" or not divisible(case):
        return small
    maps = row["kernel"] in ("normalise_kernel", "dx_kernel")
    # What is 32 bits wide: a plane's parameters, a reduction's results.
    return (small and row["loads_128"] >= 2 and row["loads_32"] <= 7
            and row["loads_64"] == row["loads_16"] == 0
            and row["stores_64"] == row["stores_16"] == 0
            and row["stores_32"] <= (0 if maps else 4)
            and row["stores_128"] >= maps)


def main(rounds=1):
    """Compile everything, print the table, write the record; `rounds`
    isn't used, since a compiler repeats itself."""
    try:
        import triton
    except ImportError:
        print("sm90: needs Triton, which exists for Linux; not compiled.")
        return
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("sm90: TRITON_INTERPRET=1 is set; not compiled.")
        return
    rows = run()
    head = ["kernel, case", "registers", "spills", "128-bit loads",
            "narrower", "met"]
    print(f"The kernels compiled for sm_90 by Triton {triton.__version__}")
    print(report.table([head] + [
        [f"{r['kernel']} {r['layout']} {r['dtype']} {r['fused']} "
         f"{tuple(r['shape'])}", str(r["registers"]), str(r["spills"]),
         str(r["loads_128"]),
         str(r["loads_64"] + r["loads_32"] + r["loads_16"]),
         "yes" if meets(r) else "NO"] for r in rows]))
    print(report.write("sm90", [{**r, "shape": list(r["shape"])}
                                for r in rows],
                       triton=triton.__version__, target="sm_90",
                       registers_at_most=REGISTERS, code=code_digest()))
