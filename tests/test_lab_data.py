"""Data: the digits, and MNIST from a folder, the cache or a mirror."""

import gzip
import hashlib
import subprocess
import sys

import numpy as np
import pooch
import pytest

from normlab.lab import data


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A small data set in MNIST's place, an empty cache, no network."""
    rng, files, table = np.random.default_rng(0), {}, {}
    for name, (shape, skip, _) in data.MNIST.items():
        shape = (6 if "train" in name else 4, *shape[1:])
        top = 256 if len(shape) == 2 else 10
        content = bytes(skip) + rng.integers(
            0, top, shape, dtype=np.uint8).tobytes()
        files[name] = content
        table[name] = shape, skip, hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(data, "MNIST", table)
    monkeypatch.setattr(data, "cache", lambda: tmp_path / "cache" / "mnist")
    monkeypatch.delenv(data.FOLDER, raising=False)
    mirror(monkeypatch, lambda url: None)
    return files


def mirror(monkeypatch, answer):
    """Let `answer(url)` give what the network would: bytes, or None."""
    class Downloader:
        def __init__(self, **options):
            assert options["progressbar"]

        def __call__(self, url, output_file, pooch):
            content = answer(url)
            if content is None:
                raise ConnectionError("no route")
            with open(output_file, "wb") as file:
                file.write(content)

    monkeypatch.setattr(pooch, "HTTPDownloader", Downloader)


def write(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(gzip.compress(content))


def held(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_digits_are_split_scaled_and_seeded():
    x, y, x_test, y_test = data.digits()
    assert x.shape == (1437, 64) and x_test.shape == (360, 64)
    assert x.dtype == np.float32 and x.min() == 0 and x.max() == 1
    assert set(y) == set(y_test) == set(range(10))
    assert np.array_equal(x, data.digits()[0])
    assert not np.array_equal(x, data.digits(seed=1)[0])
    with pytest.raises(ValueError, match="test_size must be from 1 to 1796"):
        data.digits(test_size=1797)


@pytest.mark.parametrize("inside", ["", "mnist"])
def test_mnist_from_the_readers_folder(small, tmp_path, monkeypatch, inside):
    write(tmp_path / "mine" / inside, small)
    monkeypatch.setenv(data.FOLDER, str(tmp_path / "mine"))
    x, y, x_test, y_test = data.mnist(np.float64)
    assert x.shape == (6, 784) and x_test.shape == (4, 784)
    assert x.dtype == np.float64 and 0 <= x.min() and x.max() <= 1
    raw = small["train-images-idx3-ubyte.gz"][16:]
    assert np.allclose(x.ravel() * 255, np.frombuffer(raw, np.uint8))
    assert y.dtype == np.int64 and y.shape == (6,) and y_test.shape == (4,)
    assert not (tmp_path / "cache").exists()


def test_mnist_from_the_cache_needs_no_network(small, tmp_path):
    write(tmp_path / "cache" / "mnist", small)
    assert data.mnist()[0].dtype == np.float32


def test_a_folder_that_is_none_is_named(small, monkeypatch, tmp_path):
    monkeypatch.setenv(data.FOLDER, str(tmp_path / "nowhere"))
    with pytest.raises(data.DataError, match="nowhere, which is no folder"):
        data.mnist()


def test_dtype_must_be_a_float(small):
    with pytest.raises(TypeError, match="dtype must be a float type"):
        data.mnist(np.uint8)


def test_dead_network_names_both_ways_out(small, tmp_path):
    with pytest.raises(data.DataError) as caught:
        data.mnist()
    text = str(caught.value)
    assert "NORMLAB_DATA" in text and "connect to the network once" in text
    assert all(m in text for m in data.MIRRORS)
    assert "\n" not in text and held(tmp_path) == []


def test_a_refused_connection_is_a_data_error(small, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.delenv(data.FOLDER, raising=False)
    monkeypatch.setattr(data, "cache", lambda: tmp_path)
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(data.DataError, match="could it be downloaded"):
        data.mnist()
    assert held(tmp_path) == []


def test_the_next_mirror_is_tried(small, monkeypatch, tmp_path):
    asked = []

    def answer(url):
        asked.append(url)
        if url.startswith(data.MIRRORS[0]):
            return None
        return gzip.compress(small[url.rsplit("/", 1)[1]])

    mirror(monkeypatch, answer)
    data.mnist()
    assert len(asked) == 8
    assert held(tmp_path) == sorted(small)
    data.mnist()
    assert len(asked) == 8, "the second time comes from the cache"


def spoil(content, how):
    zipped = gzip.compress(content)
    return {"truncated": zipped[:len(zipped) // 2], "empty": b"",
            "not gzip": b"<html>Not here.</html>",
            "another": gzip.compress(content[:-1] + b"\x0b")}[how]


SPOILT = ["truncated", "empty", "not gzip", "another"]


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_download_is_refused(small, monkeypatch, tmp_path, how):
    mirror(monkeypatch,
           lambda url: spoil(small[url.rsplit("/", 1)[1]], how))
    with pytest.raises(data.DataError, match="train-images-idx3-ubyte.gz"):
        data.mnist()
    assert held(tmp_path) == []


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_file_of_the_reader_is_named(
        small, monkeypatch, tmp_path, how):
    write(tmp_path / "mine", small)
    path = tmp_path / "mine" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(spoil(small[path.name], how))
    monkeypatch.setenv(data.FOLDER, str(tmp_path / "mine"))
    with pytest.raises(data.DataError, match=f"{path.name}.*remove it"):
        data.mnist()


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_cache_is_replaced_or_named(
        small, monkeypatch, tmp_path, how):
    write(tmp_path / "cache" / "mnist", small)
    path = tmp_path / "cache" / "mnist" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(spoil(small[path.name], how))
    with pytest.raises(data.DataError, match="copy in the cache is no use"):
        data.mnist()
    mirror(monkeypatch,
           lambda url: gzip.compress(small[url.rsplit("/", 1)[1]]))
    assert data.mnist()[1].shape == (6,)
    assert gzip.decompress(path.read_bytes()) == small[path.name]


def test_stopping_a_download_leaves_nothing(small, monkeypatch, tmp_path):
    def answer(url):
        raise KeyboardInterrupt

    mirror(monkeypatch, answer)
    with pytest.raises(KeyboardInterrupt):
        data.mnist()
    assert held(tmp_path) == []


def test_a_cache_that_cannot_be_made(small, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(data, "cache", lambda: tmp_path / "file" / "mnist")
    with pytest.raises(data.DataError, match="NORMLAB_DATA"):
        data.mnist()


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = ("import sys, normlab.lab.data; "
            "print({'pooch', 'sklearn', 'requests'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], check=True,
                          capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
