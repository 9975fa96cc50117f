# %% [markdown]
# Loops over the channels, a dict of nodes as the cache, the last question
# first. NumPy comes from the notebook's own first cell.
#

# %% answer="q4-fuse"
def fuse_after(weight, bias, norm):
    new = weight.copy()
    offset = np.zeros(len(weight), dtype=weight.dtype)
    for o in range(len(weight)):
        std = np.sqrt(norm["var"][o] + norm["eps"])
        for i in range(weight.shape[1]):
            new[o, i] = weight[o, i] * norm["gamma"][o] / std
        b = 0.0
        if bias is not None:
            b = bias[o]
        b = (b - norm["mean"][o]) / std
        offset[o] = norm["gamma"][o] * b + norm["beta"][o]
    return new, offset


def fuse_before(norm, weight, bias):
    new = weight.copy()
    offset = np.zeros(len(weight), dtype=weight.dtype)
    for o in range(len(weight)):
        total = 0.0
        if bias is not None:
            total = float(bias[o])
        for i in range(weight.shape[1]):
            std = np.sqrt(norm["var"][i] + norm["eps"])
            scale = norm["gamma"][i] / std
            new[o, i] = weight[o, i] * scale
            shift = norm["beta"][i] - norm["mean"][i] * scale
            total = total + weight.reshape(len(weight), -1)[o, i] * shift
        offset[o] = total
    return new, offset


# %% answer="q3-track"
def track(buffers, x, momentum=0.1):
    n, c, h, w = x.shape
    if n * h * w == 1:
        raise ValueError("x must have two values a channel or more")
    new = {"running_mean": buffers["running_mean"].copy(),
           "running_var": buffers["running_var"].copy(),
           "num_batches_tracked": buffers["num_batches_tracked"]}
    for value in x.ravel():
        if value != value or abs(value) == float("inf"):
            return new
    new["num_batches_tracked"] = new["num_batches_tracked"] + 1
    for j in range(c):
        values = [float(v) for v in x[:, j].ravel()]
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        if momentum is None:
            t = new["num_batches_tracked"]
            new["running_mean"][j] = (
                (t - 1) * buffers["running_mean"][j] + mean) / t
            new["running_var"][j] = (
                (t - 1) * buffers["running_var"][j] + var) / t
        else:
            new["running_mean"][j] *= 1 - momentum
            new["running_mean"][j] += momentum * mean
            new["running_var"][j] *= 1 - momentum
            new["running_var"][j] += momentum * var
    return new


# %% answer="q2-images"
def image_norm_backward(dy, cache):
    dx = np.zeros(dy.shape, dy.dtype)
    dgamma, dbeta = np.zeros(dy.shape[1]), np.zeros(dy.shape[1])
    for j in range(dy.shape[1]):
        d, s, n = cache["d"][j], cache["s"][j], cache["n"]
        g = dy[:, j].astype(float)
        dbeta[j] = g.sum()
        dgamma[j] = (g * s * d).sum()
        dxhat = g * cache["gamma"][j]
        ds = (dxhat * d).sum()
        dvar = -0.5 * s ** 3 * ds
        dd = dxhat * s
        dmean = -dd.sum()
        # The variance of the whole batch has slope 0 in the mean.
        dx[:, j] = dd + dvar * 2 * d / n + dmean / n
    return dx, dgamma, dbeta


def image_norm_forward(x, others, gamma, beta, eps=1e-5):
    y = np.zeros(x.shape, x.dtype)
    cache = {"d": {}, "s": {}, "gamma": gamma}
    for j in range(x.shape[1]):
        own = x[:, j].astype(float)
        count, mean_o, m2_o = others[0], others[1][j], others[2][j]
        n = own.size + count
        mean = own.mean() * (own.size / n) + mean_o * (count / n)
        d = own - mean
        var = (d ** 2).sum() / n + m2_o / n + count / n * (mean_o - mean) ** 2
        s = 1 / np.sqrt(var + eps)
        y[:, j] = gamma[j] * d * s + beta[j]
        cache["d"][j], cache["s"][j], cache["n"] = d, s, n
    return y, cache


# %% answer="q1-moments"
def merge(a, b):
    n = a[0] + b[0]
    mean, m2 = np.zeros(len(a[1])), np.zeros(len(a[1]))
    for j in range(len(a[1])):
        if n > 0:
            mean[j] = a[1][j] * (a[0] / n) + b[1][j] * (b[0] / n)
            m2[j] = (a[2][j] + a[0] * (a[1][j] - mean[j]) ** 2
                     + b[2][j] + b[0] * (b[1][j] - mean[j]) ** 2)
    return n, mean, m2


def chunk_moments(x):
    """A value at a time (Welford)."""
    c = x.shape[1]
    mean, m2, n = [0.0] * c, [0.0] * c, 0
    for j in range(c):
        n = 0
        for value in x[:, j].ravel().tolist():
            n += 1
            d = value - mean[j]
            mean[j] += d / n
            m2[j] += d * (value - mean[j])
    return n, np.array(mean), np.array(m2)
