"""Data sets: digits, which needs no network, and MNIST."""

import gzip
import hashlib
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

FOLDER = "NORMLAB_DATA"  # environment variable: a folder that holds the data
# Each file's shape, bytes before the values, and sha256 once unzipped: the
# mirrors' zipped files differ from each other, what they hold does not.
MNIST = {
    "train-images-idx3-ubyte.gz": (
        (60000, 784), 16,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte.gz": (
        (60000,), 8,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte.gz": (
        (10000, 784), 16,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte.gz": (
        (10000,), 8,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


class DataError(RuntimeError):
    """A data set could not be had, or is not what it should be."""


def digits(seed=0, test_size=360, dtype=np.float32):
    """scikit-learn's digits: 8x8 images of 1,797 handwritten digits.

    Returns (x_train, y_train, x_test, y_test); x (N, 64) of `dtype`, from
    0 to 1; y (N,) integers from 0 to 9. `seed` draws which `test_size`
    images are held out. Source: Pedregosa et al. (2011).
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    if not 1 <= test_size < len(x):
        raise ValueError(f"test_size must be from 1 to {len(x) - 1}, got "
                         f"{test_size}")
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = (x[order] / 16).astype(dtype), y[order]
    cut = len(x) - test_size
    return x[:cut], y[:cut], x[cut:], y[cut:]


def mnist(dtype=np.float32):
    """MNIST: 28x28 images of 70,000 handwritten digits.

    Returns (x_train, y_train, x_test, y_test); x (60000, 784) and
    (10000, 784) of `dtype`, from 0 to 1; y int64 from 0 to 9. The four
    files come from the folder named in the environment variable
    NORMLAB_DATA, else from the cache, else once over the network into the
    cache; each is checked wherever it came from. Raises DataError if they
    can't be had, TypeError if dtype is no float type. Source: LeCun et
    al. (1998).
    """
    if np.dtype(dtype).kind != "f":
        raise TypeError(f"dtype must be a float type, got {dtype!r}")
    parts = []
    for name, (shape, skip, _) in MNIST.items():
        values = np.frombuffer(fetch(name), np.uint8, offset=skip)
        values = values.reshape(shape)
        if len(shape) == 2:
            parts.append(values.astype(dtype))
            parts[-1] /= 255
        else:
            parts.append(values.astype(np.int64))
    return tuple(parts)


def fetch(name):
    """The unzipped bytes of one of MNIST's files; DataError if it can't
    be had."""
    for path in given(name):
        return unzip(path)
    path, spoilt = cache() / name, ""
    if path.exists():
        try:
            return unzip(path)
        except DataError as error:
            spoilt = f" The copy in the cache is no use: {error}"
    return download(path, spoilt)


def given(name):
    """Where the reader's own folder holds `name`: one path or none."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return []
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{FOLDER} names {folder}, which is no folder")
    return [p for p in (folder / "mnist" / name, folder / name)
            if p.is_file()][:1]


def cache():
    """The folder in which downloaded files are kept."""
    import pooch

    return Path(pooch.os_cache("normlab")) / "mnist"


def unzip(path):
    """The bytes in the gzip file at `path`; DataError names the file
    unless they are those that its name stands for."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut short ({error}); "
                        "remove it") from error
    got, want = hashlib.sha256(content).hexdigest(), MNIST[path.name][2]
    if got != want:
        raise DataError(f"{path} is not the {path.name} of MNIST: unzipped, "
                        f"its sha256 is {got[:16]}..., not {want[:16]}...; "
                        "remove it")
    return content


def download(path, spoilt=""):
    """Fetch the file that belongs at `path` from the first mirror that
    gives it whole, keep it there, and return its unzipped bytes."""
    import pooch

    faults = []
    for mirror in MIRRORS:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and checked, then moved: the cache never holds
            # half a file, whenever the program is stopped.
            with tempfile.TemporaryDirectory(dir=path.parent) as aside:
                part = Path(aside) / path.name
                pooch.HTTPDownloader(progressbar=True, timeout=20)(
                    mirror + path.name, str(part), None)
                content = unzip(part)
                part.replace(path)
                return content
        except (OSError, ValueError, DataError) as error:
            # requests' errors are OSErrors.
            faults.append(f"{mirror}: {type(error).__name__}: {error}")
    raise DataError(
        f"{path.name} is neither in the cache ({path.parent}) nor could it "
        f"be downloaded.{spoilt} Either connect to the network once and run "
        f"again, or set the environment variable {FOLDER} to a folder that "
        "holds MNIST's four .gz files. Tried: " + "; ".join(faults))
