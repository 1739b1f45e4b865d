"""Beyond 2^31 elements and 2^32 bytes, products that overflow, extreme dilations, single elements, nothing, primes.

The big tensors are virtual: a few elements far apart in memory that the system never backs with pages.
"""

from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import gpu_conv
from gpu_conv import arguments, dispatch, reference
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import Emulator, machine, scheduler
from gpu_conv.testing import assert_conv_close
from tests.fuzz import oracle
from tests.fuzz.rows import ROWS, WITHOUT_RESIDUAL, accepted, taking, usual
from tests.kernels.checking import numbers

FAR = (1 << 31) + (1 << 20)  # elements: beyond 2^31, and as float16 beyond 2^32 bytes

# x, w, options, in channels-first order; then the axis of x that is far apart.
SHAPES = {
    "dense": ((2, 16, 6, 6), (16, 16, 3, 3), {"padding": 1}),
    "pointwise": ((2, 16, 4, 4), (16, 16, 1, 1), {}),
    "depthwise": ((2, 16, 6, 6), (16, 1, 3, 3), {"groups": 16, "padding": 1}),
    "depthwise 1-D": ((2, 16, 20), (16, 1, 4), {"groups": 16, "padding": 1}),
    "3-D": ((2, 4, 3, 4, 4), (4, 4, 2, 2, 2), {}),
}


def far_apart(array, axis):
    """The same numbers, neighbours along ``axis`` FAR elements from each other."""
    memory = np.zeros(FAR * (array.shape[axis] - 1) + array.size, array.dtype)
    strides = list(array.strides)
    strides[axis] = FAR * array.itemsize
    view = as_strided(memory, array.shape, strides)
    view[...] = array
    return view


def rows_for(x, w, options):
    return taking(arguments.prepare(x, w, **options).problem)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_an_input_beyond_two_gigaelements_in_every_kernel_that_takes_it(shape, last):
    pytest.importorskip("cuda.bindings.nvrtc")
    x_shape, w_shape, options = SHAPES[shape]
    rng = np.random.default_rng(3)
    x, w = numbers(x_shape, "float16", rng, exact=True), numbers(w_shape, "float16", rng, exact=True)
    if last:
        names = oracle.letters(x.ndim - 2)
        x, w = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, w))
        options = options | {"input_layout": f"n{names}c", "filter_layout": f"o{names}i"}
    want = gpu_conv.conv(x, w, **options)
    assert_conv_close(want, x, w, **options)
    far = far_apart(x, 0)
    np.testing.assert_array_equal(gpu_conv.conv(far, w, **options), want)
    kernels = rows_for(far, w, options)
    assert "direct" in kernels
    for kernel in kernels:
        y = gpu_conv.conv(far, w, device="emulator", kernel=kernel, **options)
        np.testing.assert_array_equal(y, want, err_msg=kernel)


@pytest.mark.parametrize(("groups", "taps"), [(1, 3), (2, 3), (1, 1)])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_neighbours_two_gigaelements_apart(axis, groups, taps):
    """Along the channels, rows or columns: steps of the inner loops beyond 32 bits, in kernels that take them."""
    pytest.importorskip("cuda.bindings.nvrtc")
    rng = np.random.default_rng(5)
    x, w = (numbers(shape, "float16", rng, exact=True) for shape in ((1, 2, 2, 2), (2, 2 // groups, taps, taps)))
    options = {"groups": groups, "padding": taps // 2}
    want, far = gpu_conv.conv(x, w, **options), far_apart(x, axis)
    for kernel in rows_for(far, w, options):
        y = gpu_conv.conv(far, w, device="emulator", kernel=kernel, **options)
        np.testing.assert_array_equal(y, want, err_msg=kernel)


class LastBlocks(Emulator):
    """Runs the last blocks of a launch and no others."""

    def _run_chunks(self, state):
        count = int(np.prod(state.grid))
        with np.errstate(all="ignore"):
            scheduler.Scheduler(machine.Machine(state, np.arange(max(0, count - 4), count))).run()
        return False  # the other blocks' outputs are not looked for


ORDERS = [(name, last) for name in ROWS for last in (False, True) if accepted(name, usual(name), (last,))]


@pytest.mark.parametrize(("name", "last"), ORDERS)
def test_dense_arrays_beyond_two_gigaelements_in_every_row(name, last):
    """x, residual and y lie as every row likes them, millions of images long; the last blocks give the last images."""
    pytest.importorskip("cuda.bindings.nvrtc")
    dtype = usual(name)
    arch, x_shape, w_shape, options = accepted(name, dtype, (last,))
    rng = np.random.default_rng(4)
    w, tail = numbers(w_shape, dtype, rng, exact=True), numbers((3, *x_shape[1:]), dtype, rng, exact=True)
    result = arguments.prepare(tail, w, **options).result
    batch = (1 << 31) // min(tail[0].size, result[0].size) + 1000  # so that the tile of the last images starts beyond

    def long(last):
        array = np.zeros((batch, *last.shape[1:]), last.dtype)
        array[-3:] = last
        return array

    unwritten = np.full_like(result, np.nan if result.dtype.kind in "fV" else 77)
    without = dtype == "int8" or name in WITHOUT_RESIDUAL
    residual = {} if without else {"residual": numbers(result.shape, dtype, rng, exact=True)}
    call = arguments.prepare(long(tail), w, out=long(unwritten), **{k: long(a) for k, a in residual.items()}, **options)
    target = replace(KNOWN_TARGETS[arch], multiprocessors=1 << 20)  # no block has many tiles
    assert dispatch.row(name).refuses(call.problem, target) is None
    LastBlocks(arch).run(dispatch.row(name).plan(call.problem, target), call.operands)
    small = arguments.prepare(tail, w, **residual, **options)
    want = reference.convolve(small.problem, small.operands).astype(result.dtype)
    got, before = call.operands["y"][-3:], small.y_view(unwritten)
    written = ~((got == before) | (got != got))
    assert written.sum() >= 256
    np.testing.assert_array_equal(got[written], want[written])


OVERFLOWS = {
    "output": dict(padding=1 << 40),
    "output of one axis": dict(padding=((0, (1 << 62)), (0, 0))),
    "input dilation": dict(input_dilations=1 << 61),
    "padding and dilation": dict(input_dilations=1 << 40, padding=1 << 40),
}


@pytest.mark.parametrize("device", [None, "emulator"])
@pytest.mark.parametrize("case", OVERFLOWS)
def test_products_that_overflow_are_refused_before_anything_is_allocated(case, device):
    x, w = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 1, 1), np.float32)
    with pytest.raises((ValueError, MemoryError), match=r"exceeds 2\^63 - 1 bytes|Unable to allocate"):
        gpu_conv.conv(x, w, device=device, **OVERFLOWS[case])


def check(x, w, transposed=False, **options):
    """On NumPy, and in the emulator by the kernel that the table chooses."""
    function = gpu_conv.conv_transpose if transposed else gpu_conv.conv
    for device in (None, "emulator"):
        y = function(x, w, device=device, **options)
        assert_conv_close(y, x, w, transposed=transposed, **options)
    return y


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_extreme_dilations(dtype):
    pytest.importorskip("cuda.bindings.nvrtc")
    rng = np.random.default_rng(1)
    x, w = numbers((1, 3, 2, 3), dtype, rng, False), numbers((2, 3, 2, 2), dtype, rng, False)
    want = np.einsum("nchw,oc->nohw", x[:, :, :, :1].astype("f8"), w[:, :, 0, 1].astype("f8"))
    for step in (1000, 2**20, 2**31 - 1, 2**31, 2**40):
        # Only the second tap meets the input. NumPy makes a padded copy, so the widest are the kernels' alone.
        for device in (None, "emulator") if step <= 2**20 else ("emulator",):
            options = {"dilations": (1, step), "padding": ((0, 0), (step, 0))}
            y = gpu_conv.conv(x[:, :, :, :1], w[:, :, :1], device=device, **options)
            np.testing.assert_allclose(y, want.astype(dtype), rtol=2e-3, atol=2e-3)
        assert gpu_conv.conv(x, w, dilations=step).size == 0  # the filter does not fit


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_one_element_everywhere(rank, dtype):
    pytest.importorskip("cuda.bindings.nvrtc")
    x, w = np.full((1,) * (rank + 2), 3, dtype), np.full((1,) * (rank + 2), 2, dtype)
    for device in (None, "emulator") if rank else (None,):
        assert gpu_conv.conv(x, w, device=device).ravel().tolist() == [6]


@pytest.mark.parametrize("device", [None, "emulator"])
@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (1, 4, 2, 5), (1, 4, 0, 5)])
def test_empty_results(shape, device):
    x, w = np.ones(shape, np.float32), np.ones((4, 4, 3, 3), np.float32)
    y = gpu_conv.conv(x, w, device=device)
    assert y.size == 0 and y.shape[:2] == (shape[0], 4)


@pytest.mark.parametrize("groups", [1, 13])
def test_prime_sizes(groups):
    pytest.importorskip("cuda.bindings.nvrtc")
    rng = np.random.default_rng(2)
    x, w = numbers((3, 13, 17, 19), "float32", rng, True), numbers((13 * 1, 13 // groups, 5, 3), "float32", rng, True)
    check(x, w, groups=groups, strides=(2, 3), dilations=(2, 1), padding=((7, 2), (0, 5)))
