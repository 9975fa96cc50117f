# Written by `make lib` from the chapters. Do not edit.

__all__ = ["TILE", "PROGRAMS", "DTYPES", "MOST", "tile", "load", "total",
           "moments_kernel", "chan", "merge_kernel", "affine", "before_relu",
           "normalise_kernel", "plan", "launch", "usable", "check", "ready",
           "forward", "after_relu", "sums_kernel", "dx_kernel", "backward",
           "inference"]

# %% 10-cuda-kernels
import torch
import triton
import triton.language as tl
from triton.language import constexpr

# %% 10-cuda-kernels
@triton.jit
def tile(p, N, L, C: constexpr, BN: constexpr, BC: constexpr, BL: constexpr,
         V: constexpr):
    """Tile p of x (N, C, L): where its values lie, which of them exist,
    which channels they are of, how many they are in each."""
    L = L // V * V  # the same number, but the compiler sees what divides it
    blocks, across = tl.cdiv(C, BC), tl.cdiv(L, BL)
    n0, l0 = p // blocks // across * BN, p // blocks % across * BL
    n = n0.to(tl.int64) + tl.arange(0, BN)[:, None, None]
    c = p % blocks * BC + tl.arange(0, BC)[None, :, None]
    i = l0 + tl.arange(0, BL)[None, None, :]
    count = tl.minimum(N - n0, BN) * tl.minimum(L - l0, BL)
    return (n * C + c) * L + i, (n < N) & (c < C) & (i < L), c, count

# %% 10-cuda-kernels
@triton.jit
def load(x, at, inside):
    """Values as float32; 0 where there is none."""
    return tl.load(x + at, inside, other=0).to(tl.float32)


@triton.jit
def total(v):
    """The sum of each channel in a tile: (BN, BC, BL) to (1, BC, 1)."""
    return tl.sum(tl.sum(v, 2, keep_dims=True), 0, keep_dims=True)

# %% 10-cuda-kernels
@triton.jit
def moments_kernel(x, parts, T, S, N, L, C: constexpr, BN: constexpr,
                   BC: constexpr, BL: constexpr, V: constexpr):
    """Shift, rest, M2 and n of every S-th tile: parts (4, C, S)."""
    pid, programs = tl.program_id(0), tl.num_programs(0)
    at, inside, c, n = tile(pid, N, L, C, BN, BC, BL, V)
    first = load(x, at, inside)
    shift = total(first) / n
    d = tl.where(inside, first - shift, 0)
    d1, d2 = d, d * d
    for p in range(pid + programs, T, programs):
        at, inside, c, count = tile(p, N, L, C, BN, BC, BL, V)
        d = tl.where(inside, load(x, at, inside) - shift, 0)
        d1, d2, n = d1 + d, d2 + d * d, n + count
    rest = total(d1) / n
    m2 = total(d2) - rest * rest * n
    out = parts + c * S + pid // tl.cdiv(C, BC)
    tl.store(out, shift, c < C)
    tl.store(out + C * S, rest, c < C)
    tl.store(out + 2 * C * S, tl.where(m2 < 0, 0, m2), c < C)
    tl.store(out + 3 * C * S, n, c < C)

# %% 10-cuda-kernels
@triton.jit
def chan(n_a, mean_a, m2_a, n_b, mean_b, m2_b):
    """Two groups' counts, means and sums of squares, merged."""
    n, delta = n_a + n_b, mean_b - mean_a
    part = n_b / tl.maximum(n, 1)  # an empty group changes nothing
    m2 = m2_a + m2_b + delta * delta * n_a * part
    return n, mean_a + delta * part, m2

# %% 10-cuda-kernels
@triton.jit
def merge_kernel(parts, stats, eps, S, C: constexpr, BS: constexpr):
    """Merge a channel of parts (4, C, S) into stats (4, C): shift, rest,
    var, 1/std."""
    c, s = tl.program_id(0), tl.arange(0, BS)
    at, step = parts + c * S, C * S
    shift = tl.load(at)
    mean = load(at, s, s < S) - shift + load(at + step, s, s < S)
    m2, n = load(at + 2 * step, s, s < S), load(at + 3 * step, s, s < S)
    mean = tl.where(s < S, mean, 0)
    n, rest, m2 = tl.reduce((n, mean, m2), 0, chan)
    mean, var = shift + rest, m2 / n
    tl.store(stats + c, mean)
    tl.store(stats + C + c, shift - mean + rest)
    tl.store(stats + 2 * C + c, var)
    tl.store(stats + 3 * C + c, 1 / tl.sqrt_rn(var + eps))

# %% 10-cuda-kernels
@triton.jit
def affine(weight, bias, shift, rest, inv_std, c, C: constexpr):
    """Shift, rest, 1/std, scale and offset of channels c, such that
    bn(x) = (x - shift) * scale + offset."""
    shift, rest = load(shift, c, c < C), load(rest, c, c < C)
    inv_std = load(inv_std, c, c < C)
    scale = load(weight, c, c < C) * inv_std
    return shift, rest, inv_std, scale, load(bias, c, c < C) - rest * scale


@triton.jit
def before_relu(d, residual, at, inside, scale, offset):
    """bn(x) from d = x - shift, plus the residual if there is one."""
    z = d * scale + offset
    return z if residual is None else z + load(residual, at, inside)

# %% 10-cuda-kernels
@triton.jit
def normalise_kernel(x, residual, y, weight, bias, shift, rest, inv_std, N,
                     L, C: constexpr, BN: constexpr, BC: constexpr,
                     BL: constexpr, V: constexpr, RELU: constexpr):
    """One tile of y = bn(x), plus the residual, through the ReLU."""
    at, inside, c, _ = tile(tl.program_id(0), N, L, C, BN, BC, BL, V)
    shift, _, _, scale, offset = affine(
        weight, bias, shift, rest, inv_std, c, C)
    d = load(x, at, inside) - shift
    z = before_relu(d, residual, at, inside, scale, offset)
    if RELU:
        z = tl.where(z < 0, 0, z)  # NaN stays NaN
    tl.store(y + at, z, inside)

# %% 10-cuda-kernels
TILE = 4096  # values in a tile of the forward pass; backward, half of it
PROGRAMS = 8 * 132  # of a reduction; an H200 has 132 multiprocessors


def plan(x, size):
    """The sizes that kernels take, with tiles of so many values; the number
    of tiles; and S, the programs a reduction has for a block of channels.
    """
    (N, C), L = x.shape[:2], x[0, 0].numel()
    # In channels-last memory every position is a row of channels.
    N, L = (N, L) if x.is_contiguous() else (N * L, 1)
    pow2, cdiv = triton.next_power_of_2, triton.cdiv
    BC = min(pow2(C), 64) if L == 1 else 1
    BL = min(pow2(L), max(size // 8, size // pow2(N)))
    BN = min(pow2(N), size // (BL * BC))
    tiles, blocks = cdiv(N, BN) * cdiv(L, BL), cdiv(C, BC)
    S = min(tiles, cdiv(PROGRAMS, blocks))
    sizes = dict(N=N, L=L, C=C, BN=BN, BC=BC, BL=BL, V=min(L & -L, 8))
    return sizes, tiles * blocks, S * blocks, S

# %% 10-cuda-kernels
def launch(kernel, programs, x, *args, **sizes):
    """Run so many programs on x's device."""
    with torch.cuda.device_of(x):
        kernel[(programs,)](*args, **sizes, num_warps=8,
                            enable_fp_fusion=True)

# %% 10-cuda-kernels
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = 2**31 - 2**16  # values a channel: a tile's end still fits 32 bits


def usable(x):
    """Whether kernels run where x is: on CUDA, or interpreted."""
    return x.is_cuda or not isinstance(tile, triton.JITFunction)


def check(x):
    """Raise TypeError or ValueError for an x that the kernels don't take."""
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be one of {DTYPES}, got {x.dtype}")
    if x.ndim < 2 or not 0 < x.numel() <= MOST * x.shape[1]:
        raise ValueError(f"x must be (N, C, ...), with 1 to {MOST} values "
                         f"a channel, got {tuple(x.shape)}")
    if not usable(x):
        raise ValueError("x must be on CUDA (or set TRITON_INTERPRET=1 "
                         f"before triton is imported), got {x.device}")

# %% 10-cuda-kernels
def ready(x, **given):
    """x and what is given with it, checked and laid out in memory alike:
    dy and residual as x, the others (C,), None there standing for 1 or 0.
    """
    check(x)
    if not x.movedim(1, -1).is_contiguous():
        x = x.contiguous()
    found, row = [x], x.new_empty(x.shape[1], dtype=torch.float32)
    for name, a in given.items():
        like = x if name in ("dy", "residual") else row
        if a is None and like is row:
            a = torch.full_like(row, name == "weight")
        if a is not None and (a.shape, a.device) != (like.shape, x.device):
            raise ValueError(
                f"{name} must be {tuple(like.shape)} on {x.device}, got "
                f"{tuple(a.shape)} on {a.device}")
        if a is not None and a.stride() != like.stride():
            a = torch.empty_like(like, dtype=a.dtype).copy_(a)
        found.append(a)
    return found

# %% 10-cuda-kernels
def forward(x, weight, bias, eps, relu=False, residual=None):
    """Training mode: y, shift, rest, var (biased) and inv_std.

    x (N, C, ...) float32, float16 or bfloat16; weight, bias (C,) or None.
    y = bn(x), plus the residual if given, through a ReLU if asked; the
    batch mean is shift + rest, the four (C,) float32. Raises TypeError and
    ValueError for what the kernels don't take.
    """
    x, weight, bias, residual = ready(
        x, weight=weight, bias=bias, residual=residual)
    sizes, tiles, programs, S = plan(x, TILE)
    parts = x.new_empty((4, sizes["C"], S), dtype=torch.float32)
    stats, y = parts.new_empty((4, sizes["C"])), torch.empty_like(x)
    launch(moments_kernel, programs, x, x, parts, tiles, S, **sizes)
    launch(merge_kernel, sizes["C"], x, parts, stats, eps, S, C=sizes["C"],
           BS=triton.next_power_of_2(S))
    shift, rest, var, inv_std = stats
    launch(normalise_kernel, tiles, x, x, residual, y, weight, bias, shift,
           rest, inv_std, **sizes, RELU=relu)
    return y, shift, rest, var, inv_std

# %% 10-cuda-kernels
@triton.jit
def after_relu(dy, d, residual, at, inside, scale, offset, RELU: constexpr):
    """dy where the ReLU let the value pass; its input is recomputed."""
    g = load(dy, at, inside)
    return g if not RELU else tl.where(
        before_relu(d, residual, at, inside, scale, offset) <= 0, 0, g)

# %% 10-cuda-kernels
@triton.jit
def sums_kernel(dy, x, residual, passed, parts, weight, bias, shift, rest,
                inv_std, T, S, N, L, C: constexpr, BN: constexpr,
                BC: constexpr, BL: constexpr, V: constexpr, RELU: constexpr):
    """Sums of g and g * (x - mean) over every S-th tile: parts (2, C, S).
    g is dy through the ReLU; it goes into `passed` if there is one."""
    pid, programs = tl.program_id(0), tl.num_programs(0)
    c = tile(pid, N, L, C, BN, BC, BL, V)[2]
    shift, rest, _, scale, offset = affine(
        weight, bias, shift, rest, inv_std, c, C)
    g1 = tl.zeros((BN, BC, BL), tl.float32)
    g2 = g1
    for p in range(pid, T, programs):
        at, inside, c, n = tile(p, N, L, C, BN, BC, BL, V)
        d = load(x, at, inside) - shift
        g = after_relu(dy, d, residual, at, inside, scale, offset, RELU)
        if passed is not None:
            tl.store(passed + at, g, inside)
        g1, g2 = g1 + g, g2 + g * (d - rest)
    out = parts + c * S + pid // tl.cdiv(C, BC)
    tl.store(out, total(g1), c < C)
    tl.store(out + C * S, total(g2), c < C)

# %% 10-cuda-kernels
@triton.jit
def dx_kernel(g, x, dx, sums, weight, bias, shift, rest, inv_std, m, N, L,
              C: constexpr, BN: constexpr, BC: constexpr, BL: constexpr,
              V: constexpr, RELU: constexpr):
    """One tile of dx, from sums (2, C): of g, and of g * (x - mean)."""
    at, inside, c, _ = tile(tl.program_id(0), N, L, C, BN, BC, BL, V)
    shift, rest, inv_std, scale, offset = affine(
        weight, bias, shift, rest, inv_std, c, C)
    d = load(x, at, inside) - shift
    g = after_relu(g, d, None, at, inside, scale, offset, RELU)
    slope = load(sums + C, c, c < C) * inv_std * inv_std / m
    g -= load(sums, c, c < C) / m + (d - rest) * slope
    tl.store(dx + at, scale * g, inside)

# %% 10-cuda-kernels
def backward(dy, x, weight, bias, shift, rest, inv_std, relu=False,
             residual=None):
    """The gradients of `forward`: dx, dweight, dbias, and with a residual
    that of the residual; dweight and dbias are (C,) float32."""
    x, dy, residual, *saved = ready(
        x, dy=dy, residual=residual, weight=weight, bias=bias, shift=shift,
        rest=rest, inv_std=inv_std)
    sizes, tiles, programs, S = plan(x, TILE // 2)
    parts = x.new_empty((2, sizes["C"], S), dtype=torch.float32)
    passed = torch.empty_like(x) if relu and residual is not None else None
    launch(sums_kernel, programs, x, dy, x, residual, passed, parts, *saved,
           tiles, S, **sizes, RELU=relu)
    sums, dx = parts.sum(2), torch.empty_like(x)
    g, relu = (dy, relu) if passed is None else (passed, False)
    launch(dx_kernel, tiles, x, g, x, dx, sums, *saved,
           x.numel() // x.shape[1], **sizes, RELU=relu)
    grads = dx, sums[1] * saved[-1], sums[0]
    return grads if residual is None else (*grads, g)

# %% 10-cuda-kernels
def inference(x, weight, bias, mean, var, eps, relu=False, residual=None):
    """y = bn(x) with the given mean and var (C,), plus the residual if
    given, through a ReLU if asked; arguments as in `forward`."""
    x, weight, bias, mean, rest, var, residual = ready(
        x, weight=weight, bias=bias, mean=mean, rest=None, var=var,
        residual=residual)
    sizes, tiles, _, _ = plan(x, TILE)
    y, inv_std = torch.empty_like(x), (var.float() + eps).rsqrt()
    launch(normalise_kernel, tiles, x, x, residual, y, weight, bias, mean,
           rest, inv_std, **sizes, RELU=relu)
    return y
