"""The kernels of the runner's steps that are no convolutions, in the emulator, against NumPy."""

from functools import partial
from itertools import product

import numpy as np
import pytest

from gpu_conv.arguments import tensor
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import EmulationError, Emulator
from gpu_conv.families import channels_last, global_average
from tests.kernels.checking import ARCHES, GUARD, TARGETS, assert_lean, assert_params_match, guarded, numbers, plant

H100 = KNOWN_TARGETS["sm_90a"]


def run(family, x, shape, dtype=None, *, target=None, arch="sm_80", seed=None):
    """The result of one launch with every check on, the launch, and what it counted."""
    y, clear, check_guards = guarded(shape, dtype or x.dtype)
    clear()
    assert family.refuses(tensor(x), tensor(y)) is None
    launch = family.plan(tensor(x), tensor(y), target or TARGETS[arch])
    report = Emulator(arch, seed=seed).run(launch, {"x": x, "y": y})
    check_guards()
    return y, launch, report


def moved(x, dtype, **options):
    return run(channels_last, x, (x.shape[0], *x.shape[2:], x.shape[1]), dtype, **options)


def averaged(x, **options):
    return run(global_average, x, (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]), **options)


def mean(x):
    """In float64, rounded once."""
    return x.astype(np.float64).mean(axis=tuple(range(1, x.ndim - 1)), keepdims=True).astype(x.dtype)


def pictures(shape, dtype="float32", seed=0):
    return numbers(shape, dtype, np.random.default_rng(seed), exact=False)


PAIRS = [*product(("float32", "float16", "bfloat16"), repeat=2)]


@pytest.mark.parametrize(
    ("given", "wanted", "channels"),
    [*(("float32", "float16", c) for c in (1, 2, 4)), *((*pair, 1 + i % 4) for i, pair in enumerate(PAIRS, 1))],
)
def test_planes_to_channels_last(channels, given, wanted):
    """Images whose ends fall into the middle of a block and of 16 bytes; several images in one block."""
    for size in ((7, 5), (19, 29)):
        x = pictures((3, channels, *size), given)
        y, _, _ = moved(x, wanted, arch=ARCHES[channels % 2])
        np.testing.assert_array_equal(y, np.moveaxis(x.astype(np.float32), 1, -1).astype(wanted))


@pytest.mark.parametrize("pixels", [*range(1, 10), 255, 256, 257, 1023, 1024, 1025, 4099])
def test_number_of_pixels(pixels):
    """Ranks 3 and 5 too; one multiprocessor's worth of blocks takes one pixel per thread, more take four."""
    for shape in ((1, 3, pixels), (2, 3, 1, pixels, 1)):
        x = pictures(shape)
        y, launch, _ = moved(x, "float16")
        np.testing.assert_array_equal(y, np.moveaxis(x, 1, -1).astype("float16"))
        assert launch.template[-1] == (4 if shape[0] * pixels >= 4096 else 1)


def test_values_that_are_no_numbers():
    x = pictures((1, 3, 4, 4))
    x[0, 1, 2, 3], x[0, 0, 1, 1], x[0, 2, 0, 0], x[0, 0, 3, 3] = np.nan, np.inf, -1e9, 65519
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(moved(x, "float16")[0], np.moveaxis(x, 1, -1).astype("float16"))
    x = pictures((2, 3, 5, 24))
    x[0, 1, 2, 3], x[0, 0, 1, 1], x[1, 2, 3, 4] = np.nan, np.inf, -np.inf
    y, _, _ = averaged(x)
    assert np.isnan(y[0, 0, 0, 3])
    assert np.isfinite(y).sum() == y.size - 3
    assert (y[0, 0, 0, 1], y[1, 0, 0, 4]) == (np.inf, -np.inf)


@pytest.mark.parametrize(
    ("dtype", "channels"),
    [
        *(("float16", c) for c in (*range(1, 10), 12, 20, 64, 264)),
        *product(("float32", "float64", "bfloat16"), (3, 6, 8, 200)),
    ],
)
def test_mean_over_the_pixels(dtype, channels):
    """Every residue of the widest vector, one channel to more than a block takes; sums of small integers are exact."""
    x = numbers((2, 3, 5, channels), dtype, np.random.default_rng(channels), exact=True)
    np.testing.assert_array_equal(averaged(x, arch=ARCHES[channels // 2 % 2])[0], mean(x))


@pytest.mark.parametrize("pixels", [*range(1, 10), 49, 63, 64, 65, 127, 128, 129, 2051])
def test_mean_over_so_many_pixels(pixels):
    for shape, target in product(((1, pixels, 16), (2, 1, pixels, 1, 16)), (None, H100)):
        x = numbers(shape, "float16", np.random.default_rng(pixels), exact=True)
        np.testing.assert_array_equal(averaged(x, target=target)[0], mean(x))


def test_sums_are_float32():
    """12544 values of 6 are more than float16 holds; normal numbers are rounded once."""
    x = np.full((1, 112, 112, 8), 6, "float16")
    np.testing.assert_array_equal(averaged(x)[0], np.full((1, 1, 1, 8), 6, "float16"))
    x = pictures((2, 14, 14, 40), "float16")
    np.testing.assert_allclose(averaged(x)[0].astype(float), x.astype(float).mean((1, 2), keepdims=True), 2**-11, 2e-7)
    x = pictures((2, 14, 14, 40), "float32")
    np.testing.assert_allclose(averaged(x)[0], x.astype(float).mean((1, 2), keepdims=True), 0, 196 * 2**-24)


def test_every_schedule_gives_the_same(seed):
    x = pictures((2, 9, 9, 40), "float16")
    assert len({averaged(x, seed=s, target=H100)[0].tobytes() for s in (None, seed)}) == 1
    x = pictures((2, 3, 19, 29))
    assert len({moved(x, "float16", seed=s)[0].tobytes() for s in (None, seed)}) == 1


def test_traffic():
    """Whole sectors both ways, nothing twice."""
    x = pictures((2, 3, 64, 64))
    _, launch, report = moved(x, "float16")
    counters = report.counters
    assert launch.template == ("float", "float16", 3, 4)
    assert (counters.bytes_read, counters.bytes_written) == (x.nbytes, x.nbytes // 2)
    assert counters.store_sectors_per_request == 16
    assert counters.load_sectors_per_request == 4
    assert counters.bank_conflict_factor <= 1.7
    x = pictures((4, 7, 7, 256), "float16")
    for target in (None, H100):
        counters = averaged(x, target=target)[2].counters
        assert counters.bytes_read == x.nbytes
        assert counters.bank_conflict_factor <= 1.5


def test_blocks_fill_the_device():
    """The pool of MobileNetV2: at batch 1 there are more blocks of fewer channels, at batch 256 long runs."""
    found = {}
    for batch in (1, 32, 256):
        x, y = np.empty((batch, 7, 7, 1280), "float16"), np.empty((batch, 1, 1, 1280), "float16")
        launch = global_average.plan(tensor(x), tensor(y), H100)
        found[batch] = launch.template, launch.grid[0]
    assert found == {
        1: (("float16", 8, 4), 40),
        32: (("float16", 8, 8), 640),
        256: (("float16", 8, 32), 1280),
    }


def test_params():
    assert_params_match("channels_last.cu", channels_last.PARAMS)
    assert_params_match("global_average.cu", global_average.PARAMS)


def test_registers_do_not_spill():
    x, y = pictures((1, 3, 64, 64)), np.empty((1, 64, 64, 3), "float16")
    assert_lean([channels_last.plan(tensor(x), tensor(y), TARGETS["sm_80"])], ["sm_80", "sm_90a"])
    x, y = pictures((2, 7, 7, 512), "float16"), np.empty((2, 1, 1, 512), "float16")
    assert_lean([global_average.plan(tensor(x), tensor(y), TARGETS["sm_80"])], ["sm_80", "sm_90a"])


def test_refusals():
    def last(x, y):
        return channels_last.refuses(tensor(x), tensor(y))

    x, y = np.empty((2, 3, 4, 4), "float32"), np.empty((2, 4, 4, 3), "float16")
    assert last(x, y) is None
    assert "float64" in last(x.astype("float64"), y)
    assert "1 to 4 planes" in last(np.empty((2, 5, 4, 4), "float32"), np.empty((2, 4, 4, 5), "float32"))
    assert "1 to 4 planes" in last(x[:0], y[:0])
    assert "1 to 4 planes" in last(x[..., 0, 0], y[:, 0, 0])
    assert "dense" in last(x[:, :, :, ::2], y[:, :, ::2])
    odd = np.empty(2 * 48 + GUARD, "float16")[1:][: 2 * 48].reshape(y.shape)
    assert "16 bytes" in last(x, odd)

    def average(x, y):
        return global_average.refuses(tensor(x), tensor(y))

    x, y = np.empty((2, 4, 4, 3), "float16"), np.empty((2, 1, 1, 3), "float16")
    assert average(x, y) is None
    assert "keeps the type" in average(x, y.astype("float32"))
    assert "int8" in average(x.astype("int8"), y.astype("int8"))
    assert "over pixels" in average(x[:0], y[:0])
    assert "over pixels" in average(x[:, 0, 0], y[:, 0, 0])
    assert "dense" in average(x[:, ::2], y)


BUGS = {
    "channels_last.cu": {
        "no barrier": ("    __syncthreads();", ""),
        "the end is not whole": ("if (rest < elements) out[rest] = run[rest];", ""),
        "beyond the end": ("min_of(i * kThreads + int(threadIdx.x), inside - 1)", "(i * kThreads + int(threadIdx.x))"),
        "the next image begins late": ("for (; pixel >= p.pixels;", "for (; pixel > p.pixels;"),
        "an image further": ("from += int64(CHANNELS) * p.pixels;", "from += p.pixels;"),
        "planes in the wrong order": ("(value[i][c])", "(value[i][CHANNELS - 1 - c])"),
    },
    "global_average.cu": {
        "no barrier": ("    __syncthreads();", ""),
        "a line is left out": ("for (int i = 0; i < kLines; i++)", "for (int i = 1; i < kLines; i++)"),
        "beyond the last pixel": ("if (pixel + i * kLines < p.pixels) ahead", "ahead"),
        "beyond the last channel": ("first + within < p.channels", "true"),
        "channels of the next block": ("&& first + threadIdx.x < p.channels", ""),
        "the first image": ("int64(image) * p.pixels + line", "line"),
        "not divided": ("total / Acc(p.pixels)", "total"),
    },
}


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, bugs in BUGS.items() for name in bugs])
def test_planted_bugs_are_found(file, name, monkeypatch):
    plant(monkeypatch, file, *BUGS[file][name])
    if file == "channels_last.cu":
        compute, x = partial(moved, dtype="float16"), pictures((3, 3, 19, 29))
        wanted = np.moveaxis(x, 1, -1).astype("float16")
    else:
        compute, x = averaged, numbers((2, 5, 7, 264), "float16", np.random.default_rng(0), exact=True)
        wanted = mean(x)
    with pytest.raises((EmulationError, AssertionError)):
        np.testing.assert_array_equal(compute(x)[0], wanted)
