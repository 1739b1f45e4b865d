"""Dask in one process: every chunking gives what one machine gives, and wrong calls fail before any work."""

import doctest
import re
import runpy
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import dask.array as da
import numpy as np
import pytest

import gpu_conv
import gpu_conv.dask as gd
from gpu_conv import arguments
from gpu_conv.dask import graph
from gpu_conv.testing.tolerance import assert_close

from .dask_configurations import FLOATS, Draw, bits, compute

F32 = np.float32


def outcome(call):
    """The result, or the error's type and text."""
    try:
        return call(), None
    except (ValueError, TypeError) as error:
        return None, (type(error), str(error))


def draws(seed, **kinds):
    """Endless configurations; each can be drawn again from the seed and its number."""
    number = 0
    while True:
        yield Draw(np.random.default_rng([seed, number]), **kinds).configuration()
        number += 1


def normal(*shape, seed=0, dtype=F32):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def poisoned(shape, chunks, dtype=F32):
    """A dask array that must not be computed."""

    def fail(block):
        raise AssertionError("computed while planning")

    return da.zeros(shape, chunks=chunks, dtype=dtype).map_blocks(
        fail, dtype=dtype, meta=np.empty((0,) * len(shape), dtype)
    )


# --------------------------------------------------------------------------------------------------- equal to the whole


def test_equal_bit_for_bit(request, record_property, seed):
    """Sums that are exact leave nothing to the order of additions. A call that one machine refuses is refused alike."""
    record_property("seed", seed)
    seen = Counter()
    for made in draws(seed):
        want, error = outcome(made.whole)
        tiled, tiled_error = outcome(made.tiled)
        assert tiled_error == error, str(made)
        seen["refused" if error else "equal"] += 1
        if not error:
            got = compute(tiled)
            assert got.dtype == want.dtype and got.shape == want.shape, str(made)
            assert bits(got) == bits(want), str(made)
        if seen["equal"] >= max(500, request.config.getoption("--configurations") // 4):
            break
    assert seen["refused"] < seen["equal"] / 10, seen


def test_floats_within_the_computed_tolerance(record_property, seed):
    record_property("seed", seed)
    seen = 0
    for made in draws(seed, dtypes=FLOATS, exact=False):
        whole, error = outcome(made.whole)
        if error or not whole.size:
            continue
        call = arguments.prepare(made.x, made.w, made.bias, transposed=made.transposed, **made.options)
        assert_close(call.y_view(compute(made.tiled())), call.problem, call.operands)
        seen += 1
        if seen == 60:
            break


def test_direct_kernel_sums_in_one_order(record_property, seed):
    """On the GPU floats are equal too, if every chunk is longer than one wherever the whole is."""
    record_property("seed", seed)
    seen = 0
    for made in draws(seed, dtypes=("float32", "float16"), exact=False):
        made.options |= {"device": "emulator", "kernel": "direct"}
        if outcome(made.whole)[1]:
            continue
        tiled = made.tiled()
        if any(len(axis) > 1 and min(axis) < 2 for axis in tiled.chunks) or tiled.npartitions == 1:
            continue
        assert bits(compute(tiled)) == bits(made.whole()), str(made)
        seen += 1
        if seen == 4:
            break


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_images_of_a_batch_are_independent(layout):
    """Chunks of the batch alone: floats are equal, for every image is computed as within the whole batch."""
    x, w = normal(6, 8, 20, 22), normal(12, 8, 3, 3)
    x = x if layout == "nchw" else np.moveaxis(x, 1, -1).copy()
    y = gd.conv2d(da.from_array(x, chunks=(4, -1, -1, -1)), w, padding=1, input_layout=layout)
    assert y.chunks[0] == (4, 2)
    assert bits(compute(y)) == bits(gpu_conv.conv2d(x, w, padding=1, input_layout=layout))


def test_the_scheduler_changes_nothing():
    x, w = da.from_array(normal(2, 3, 40, 41), chunks=(1, 2, 13, 17)), normal(4, 3, 5, 3)
    y = gd.conv2d(x, w, normal(4), strides=(2, 1), padding="same_upper", activation="gelu")
    assert len({bits(y.compute(scheduler=s)) for s in ("sync", "threads")} | {bits(compute(y))}) == 1


def test_dask_filter_bias_and_residual():
    x, w, bias = np.ones((1, 2, 9, 9), F32), normal(4, 2, 3, 3), normal(4)
    residual = normal(1, 4, 9, 9)
    lazy = [da.from_array(a, chunks=2) for a in (x, w, bias, residual)]
    y = gd.conv2d(*lazy[:3], padding=1, residual=lazy[3])
    want = gpu_conv.conv2d(x, w, bias, padding=1, residual=residual)
    np.testing.assert_allclose(compute(y), want, atol=1e-5)
    assert y.chunks == ((1,), (4,), (2, 2, 2, 2, 1), (2, 2, 2, 2, 1))


RANKS = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]


@pytest.mark.parametrize("name", RANKS)
def test_every_rank(name):
    rank = int(name[-2])
    x, w = np.arange(4 * 7**rank).reshape(2, 2, *(7,) * rank), np.arange(2 * 2 * 2**rank).reshape(2, 2, *(2,) * rank)
    y = getattr(gd, name)(da.from_array(x, chunks=3), w, strides=2)
    np.testing.assert_array_equal(compute(y), getattr(gpu_conv, name)(x, w, strides=2))


def test_empty_results():
    x = da.zeros((0, 2, 5, 5), chunks=(0, 2, 3, 3), dtype=F32)
    assert compute(gd.conv2d(x, np.ones((3, 2, 3, 3), F32))).shape == (0, 3, 3, 3)
    x = da.zeros((1, 2, 5, 2), chunks=2, dtype=F32)
    assert compute(gd.conv2d(x, np.ones((3, 2, 3, 3), F32))).shape == (1, 3, 3, 0)
    empty = np.zeros((1, 2, 0), F32)
    y = gd.conv1d(da.from_array(empty, chunks=-1), np.ones((3, 2, 2), F32), np.arange(3, dtype=F32), padding=2)
    np.testing.assert_array_equal(compute(y), np.broadcast_to(np.arange(3)[:, None], (1, 3, 3)))


# --------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize(
    ("shape", "chunks", "w", "options", "expected"),
    [
        ((4, 3, 64, 64), (2, 1, 32, 20), (8, 3, 3, 3), {"padding": 1}, ((2, 2), (8,), (32, 32), (20, 20, 20, 4))),
        ((1, 3, 64, 64), (1, 3, 32, 32), (8, 3, 5, 5), {}, ((1,), (8,), (30, 30), (30, 30))),
        ((1, 3, 33, 9), (1, 3, 11, 9), (8, 3, 3, 3), {"padding": 1, "strides": 2}, ((1,), (8,), (6, 5, 6), (5,))),
        ((1, 8, 40), (1, 3, 40), (16, 1, 3), {"groups": 8, "padding": 1}, ((1,), (6, 6, 4), (40,))),
        ((1, 8, 40), (1, 3, 40), (4, 4, 3), {"groups": 2, "padding": 1}, ((1,), (2, 2), (40,))),
        ((1, 1, 9, 9, 9), (1, 1, 4, 9, 9), (1, 1, 3, 3, 3), {"chunks": 4}, ((1,), (1,), *((4, 3),) * 3)),
    ],
    ids=["same", "valid", "stride", "depthwise", "grouped", "given"],
)
def test_chunks_of_the_output(shape, chunks, w, options, expected):
    assert gd.conv(poisoned(shape, chunks), np.ones(w, F32), **options).chunks == expected


def test_chunks_of_a_transposed_output():
    y = gd.conv_transpose1d(poisoned((1, 4, 40), (1, 4, 10)), np.ones((4, 2, 4), F32), strides=2, padding=1)
    assert y.chunks == ((1,), (2,), (20, 20, 20, 20))


def test_neighbours_give_strips_not_chunks():
    """What moves between workers for a tile in the middle: eight strips, as thin as the filter's reach."""
    x = poisoned((1, 1, 300, 300), (1, 1, 100, 100))
    y = gd.conv2d(x, np.ones((1, 1, 5, 5), F32), padding=2)
    strips = [key for key in dict(y.dask) if key[0].startswith("piece-")]
    bounds = [np.diff(np.reshape(key[5:], (4, 2)))[:, 0].tolist() for key in strips]
    assert {tuple(b) for b in bounds} == {(1, 1, 2, 2), (1, 1, 2, 100), (1, 1, 100, 2)}
    assert Counter(map(tuple, bounds)) == {(1, 1, 2, 2): 16, (1, 1, 2, 100): 12, (1, 1, 100, 2): 12}


def test_nothing_is_allocated_or_computed_while_planning():
    """A petabyte."""
    x = poisoned((1 << 10, 3, 1 << 19, 1 << 19), (1 << 8, 3, 1 << 17, 1 << 17), np.float16)
    y = gd.conv2d(x, np.ones((4, 3, 3, 3), np.float16), strides=2, padding=1, out_dtype=F32)
    assert y.shape == (1 << 10, 4, 1 << 18, 1 << 18) and y.dtype == F32 and y.npartitions == 64


# --------------------------------------------------------------------------------------------------------------- CuPy


class DeviceArray:
    """What tiles use of ``cupy.ndarray``, and no NumPy array."""

    def __init__(self, host):
        self.host = host
        self.shape, self.dtype, self.ndim, self.size = host.shape, host.dtype, host.ndim, host.size

    def __getitem__(self, index):
        return DeviceArray(self.host[index])

    def __setitem__(self, index, value):
        assert isinstance(value, DeviceArray)
        self.host[index] = value.host

    def reshape(self, *shape):
        return DeviceArray(self.host.reshape(*shape))

    def astype(self, dtype, **options):
        return DeviceArray(self.host.astype(dtype, **options))

    __array_function__ = __array_ufunc__ = None


@pytest.fixture
def standin(monkeypatch):
    """A CuPy without a GPU; its convolution is computed on the host and insists on arrays of one library."""
    module = ModuleType("cupy")
    module.ndarray = DeviceArray
    module.empty = lambda shape, dtype: DeviceArray(np.empty(shape, dtype))
    module.asarray = lambda a: a if isinstance(a, DeviceArray) else DeviceArray(np.asarray(a))
    monkeypatch.setitem(sys.modules, "cupy", module)

    def conv(x, w, bias=None, *, residual=None, **options):
        given = [None if a is None else a.host for a in (x, w, bias, residual)]
        return DeviceArray(gpu_conv.conv(*given[:3], residual=given[3], **options))

    monkeypatch.setattr(graph, "ops", SimpleNamespace(conv=conv))


def test_cupy_chunks_behind_a_numpy_meta(standin):
    """A client without a GPU: the chunks are made on the workers, the filter is moved to where they are."""
    x, w, bias = normal(1, 2, 9, 9), normal(4, 2, 3, 3), normal(4)
    lazy = da.from_array(x, chunks=(1, 2, 4, 5)).map_blocks(DeviceArray, meta=np.empty((0,) * 4, F32))
    y = gd.conv2d(lazy, w, bias, padding=1)
    blocks = [b.compute(scheduler="sync") for b in y.to_delayed().ravel()]
    assert {type(b) for b in blocks} == {DeviceArray}
    want = gpu_conv.conv2d(x, w, bias, padding=1)
    for place, block in zip(da.core.slices_from_chunks(y.chunks), blocks):
        np.testing.assert_allclose(block.host, want[place], atol=1e-5)


# -------------------------------------------------------------------------------------------------------- wrong calls

X, W = (1, 6, 8, 8), np.ones((4, 6, 3, 3), F32)


def lazy(*shape, chunks=4, dtype=F32):
    return poisoned(shape, chunks, dtype)


WRONG = {
    "not a dask array": (lambda: gd.conv(np.ones(X, F32), W), TypeError, "x must be a dask array, got ndarray"),
    "unknown sizes": (
        lambda: gd.conv(da.ones((9, 4), chunks=3)[da.ones(9, chunks=3) > 0], W),
        ValueError,
        r"x has chunks of unknown size.*compute_chunk_sizes",
    ),
    "list": (lambda: gd.conv(lazy(*X), [[1.0]]), TypeError, "w must be a NumPy or CuPy array, got builtins.list"),
    "shapes": (lambda: gd.conv(lazy(1, 5, 8, 8), W), ValueError, r"c of x == groups \* i of w; got x \(1, 5, 8, 8\)"),
    "rank": (lambda: gd.conv3d(lazy(*X), W), ValueError, "conv3d needs an input with 5 axes"),
    "dtypes": (lambda: gd.conv(lazy(*X, dtype=np.float64), W), TypeError, "x and w must have one dtype"),
    "padding": (lambda: gd.conv2d(lazy(*X), W, padding="full"), ValueError, "padding='full' is unknown"),
    "residual": (
        lambda: gd.conv2d(lazy(*X), W, residual=lazy(1, 4, 5, 6)),
        ValueError,
        r"residual must have the shape of the output \(1, 4, 6, 6\)",
    ),
    "residual list": (lambda: gd.conv2d(lazy(*X), W, residual=[1]), TypeError, "residual must be a NumPy or CuPy"),
    "out": (lambda: gd.conv2d(lazy(*X), W, out=np.ones(1)), TypeError, "dask.array.store"),
    "device": (lambda: gd.conv2d(lazy(*X), W, device="tpu"), ValueError, "device must be None or one of"),
    "device of chunks": (lambda: gd.conv2d(lazy(*X), W, device="cuda"), TypeError, "computes on cupy arrays"),
    "option": (lambda: gd.conv2d(lazy(*X), W, stride=2), TypeError, "stride"),
    "chunks": (lambda: gd.conv2d(lazy(*X), W, chunks=((1,), (4,), (3, 4), (6,))), ValueError, "Chunks do not add up"),
    "channels": (
        lambda: gd.conv2d(lazy(*X), np.ones((6, 3, 3, 3), F32), groups=2, chunks=(1, (2, 2, 2), 6, 6)),
        ValueError,
        "channels 2 to 3 are neither whole groups .of 3 channels. nor part of one",
    ),
    "batch groups": (
        lambda: gd.conv2d(lazy(4, 6, 8, 8), W, batch_groups=2, chunks=(1, 4, 6, 6)),
        ValueError,
        "batch_groups=2 needs all 2 images and all 4 channels",
    ),
    "transposed": (
        lambda: gd.conv_transpose2d(lazy(*X), np.ones((6, 2, 3, 3), F32), output_padding=3),
        ValueError,
        "output_padding",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_fail_before_any_work(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_chunks_of_another_shape_than_declared():
    """Where a wrong result would pass for a right one."""
    x = da.ones((1, 1, 8), chunks=(1, 1, 4), dtype=F32).map_blocks(
        lambda b: b[..., :1], dtype=F32, meta=np.empty((0,) * 3)
    )
    for options in ({}, {"padding": 1}):
        with pytest.raises(ValueError, match=r"x declares a part \(1, 1, \d\) of a chunk, but"):
            compute(gd.conv1d(x, np.ones((1, 1, 1 + len(options)), F32), **options))


# ---------------------------------------------------------------------------------------------------------- the example


def example(monkeypatch, *arguments):
    """``examples/dask_huge_image.py`` with these arguments."""
    path = Path(__file__).parents[1] / "examples/dask_huge_image.py"
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    runpy.run_path(str(path), run_name="__main__")


def test_the_example(monkeypatch, tmp_path, capsys):
    x, y = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(x, normal(310, 400))
    example(monkeypatch, "--input", x, "--output", y, "--chunk", 128)
    assert "in 12 chunks" in (printed := capsys.readouterr().out)
    assert float(printed.split()[-1]) < 1e-5  # the largest difference
    assert np.load(y).shape == (1, 1, 310, 400)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--gigabytes 0", "0 x 16384 is too small"),
        ("--gigabytes -1", "is too small"),
        ("--gigabytes nan", "--gigabytes nan: "),
        ("--gigabytes inf", "--gigabytes inf: "),
        ("--input missing.npy", "No such file"),
        ("--input text.npy", "the magic string is not correct"),
        ("--input bytes.npy", r"expected \[h, w\] of float32, got \[400, 400\] of uint8"),
        ("--input image.npy --output image.npy", "--output image.npy: it is the input"),
        ("--input image.npy --output missing/y.npy", "--output missing/y.npy: .*No such file"),
        ("--chunk 0", "--chunk: invalid"),
    ],
)
def test_wrong_use_of_the_example(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("text.npy").write_text("root:x:0:0\n")
    np.save("bytes.npy", np.zeros((400, 400), np.uint8))
    np.save("image.npy", np.zeros((400, 400), F32))
    before = Path("image.npy").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        example(monkeypatch, *arguments.split())
    assert re.search(message, capsys.readouterr().err)
    assert Path("image.npy").read_bytes() == before


# ----------------------------------------------------------------------------------------------------------- docstrings


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_example(name):
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(gd, name), name, gd)
    assert example.examples
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed == 0
