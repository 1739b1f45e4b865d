"""What a call costs beside the kernels: packed filters, remembered plans, microseconds on CuPy arrays without a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpu_conv
from gpu_conv import calls, execute, packing
from gpu_conv.arguments import prepare
from gpu_conv.cuda import device
from gpu_conv.cuda.targets import KNOWN_TARGETS

H100 = KNOWN_TARGETS["sm_90a"]
RNG = np.random.default_rng(0)


def integers(*shape: int, dtype: str = "float16") -> Any:
    return RNG.integers(-2, 3, shape).astype(dtype)


# x, w, options; the packed order of g o c *filter, and the copies of 16 bytes that the kernel then makes of it.
LAYERS = {
    "nchw grouped": ((1, 32, 9, 9), (32, 16, 3, 3), {"groups": 2, "padding": 1}, (0, 1, 3, 4, 2)),
    "nhwc depthwise": ((1, 9, 9, 32), (32, 1, 3, 3), {"groups": 32, "input_layout": "nhwc"}, (3, 4, 1, 2, 0)),
    "nchw depthwise": ((1, 32, 9, 9), (3, 3, 1, 32), {"groups": 32, "filter_layout": "hwio"}, (0, 1, 2, 3, 4)),
    "pointwise": ((1, 32, 9, 9), (1, 1, 32, 16), {"filter_layout": "hwio"}, (0, 1, 3, 4, 2)),
    "flipped": ((1, 32, 9, 9), (16, 32, 3, 3), {"flip_filter": True}, (0, 1, 3, 4, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_packed_filters(name: str) -> None:
    """Planned for the order in which they are packed, and right in the emulator, on both of two calls."""
    x_shape, w_shape, options, order = LAYERS[name]
    x, w = integers(*x_shape), integers(*w_shape)
    call = prepare(x, w, **options)
    packed = packing.Filters().pack(call)
    assert packed.problem.w.is_dense(order)
    assert not call.problem.w.is_dense(order)
    np.testing.assert_array_equal(packed.operands["w"], call.operands["w"])
    layer = gpu_conv.Conv(w, device="emulator", **options)
    wanted = gpu_conv.conv(x, w, **options)
    for sign in (1, -1):
        np.testing.assert_array_equal(layer(x * sign), wanted * sign)
    recorder = execute.Recorder(H100)
    with execute.instead(recorder):
        gpu_conv.Conv(w, **options)(x)
    alone = execute.Recorder(H100)
    alone.prepare(packed.problem, None)(packed.operands)
    assert recorder.launches == alone.launches, "planned for the packed filter"


def test_transposed_convolution_reads_vectors_in_every_phase() -> None:
    """Whole taps are taken, so the input channels of a group stay side by side."""
    x, w = np.zeros((1, 64, 28, 28), np.float16), np.zeros((64, 64, 4, 4), np.float16)
    call = prepare(x, w, transposed=True, strides=2, padding=1)
    recorder = execute.Recorder(H100)
    packed = packing.Filters().pack(call)
    recorder.prepare(packed.problem, None)(packed.operands)
    (launch,) = recorder.launches
    assert launch.kernel == "conv_tile"
    assert launch.template[-1].split(", ")[2] == "1", "w_copy"  # Access<sharing, x_copy, w_copy, ...>


def test_one_copy_for_all_input_shapes() -> None:
    w = integers(16, 32, 3, 3)
    filters = packing.Filters()
    first, second = (filters.pack(prepare(integers(1, 32, n, n), w)).operands["w"] for n in (8, 9))
    assert first is second
    lies_well = prepare(integers(1, 32, 8, 8), np.ascontiguousarray(w.transpose(0, 2, 3, 1)), filter_layout="ohwi")
    assert lies_well.problem.w.align < 16 or filters.pack(lies_well) is lies_well


# ------------------------------------------------------------------------- CuPy's arrays, and a stub of a GPU


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy's own arrays over addresses that nobody reads, and kernels that do nothing but be counted."""
    import cupy

    launched: list[Any] = []
    caches = (device._cupy, device._target, device._load, device._prepare)
    for cached in caches:
        cached.cache_clear()
    memory = cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(1 << 30, 1 << 40, None, 0), 0)
    place = SimpleNamespace(__enter__=None)

    class Device:
        def __init__(self, number: int) -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 1)
    monkeypatch.setattr(cupy.cuda.runtime, "getDevice", lambda: 0)
    monkeypatch.setattr(cupy.cuda, "Device", Device)
    monkeypatch.setattr(device, "_target", lambda number: H100)
    kernel = SimpleNamespace(kernel=lambda *a: launched.append(a), max_dynamic_shared_size_bytes=0)
    monkeypatch.setattr(device, "_load", lambda *a: (kernel, 0))
    monkeypatch.setattr(packing, "_copied", lambda w, axes, library: w)  # copying and waiting are the GPU's
    monkeypatch.setattr(device, "settle", lambda: None)
    monkeypatch.setattr(calls, "_plans", {})
    cupy.cuda.set_allocator(lambda size: memory + (1 << 33))

    def array(shape: tuple[int, ...], dtype: Any = np.float32, offset: int = 0) -> Any:
        return cupy.ndarray(shape, dtype, memptr=memory + offset)

    place.array, place.launched = array, launched
    yield place
    cupy.cuda.set_allocator(None)
    for cached in (device._cupy, device._prepare):
        cached.cache_clear()


OPTIONS = {
    "groups": 32,
    "padding": 1,
    "input_layout": "nhwc",
    "filter_layout": "ohwi",
    "activation": "relu6",
}


def addresses(launch: Any) -> list[int | None]:
    return [None if p is None else p.ptr - (1 << 30) for p in launch[2][:7]]


@pytest.mark.peers
def test_addresses_of_remembered_plans(stub: Any) -> None:
    """Every call takes the addresses of its own arrays; what differs in geometry is planned for itself."""
    x, w, bias = stub.array((1, 14, 14, 32)), stub.array((32, 3, 3, 1), offset=1 << 20), stub.array((32,), offset=64)
    layer = gpu_conv.Conv(w, bias, **OPTIONS)
    for i in range(3):
        given = stub.array((1, 14, 14, 32), offset=i << 24)
        out = stub.array((1, 14, 14, 32), offset=(i + 8) << 24)
        assert layer(given, out=out) is out
        assert addresses(stub.launched[-1]) == [i << 24, 1 << 20, 64, None, None, None, (i + 8) << 24]
        other = stub.array((32, 3, 3, 1), offset=(i + 32) << 20)
        gpu_conv.conv2d(given, other, bias, out=out, residual=x, **OPTIONS)
        assert addresses(stub.launched[-1]) == [i << 24, (i + 32) << 20, 64, 0, None, None, (i + 8) << 24]
    assert len(calls._plans) == 1
    assert gpu_conv.conv2d(x, w, bias, **OPTIONS).data.ptr == (1 << 30) + (1 << 33)
    assert layer(x).dtype == np.float32
    assert len(calls._plans) == 2  # without out and residual
    gpu_conv.conv2d(x, w, bias, **{**OPTIONS, "padding": ((1, 1), (1, 1))})
    gpu_conv.conv2d(stub.array((2, 14, 14, 32)), w, bias, **OPTIONS)
    gpu_conv.conv2d(stub.array((1, 14, 14, 32), offset=4), w, bias, **OPTIONS)  # aligned to 4 bytes
    assert len(calls._plans) == 5
    gpu_conv.conv2d(x, w, stub.array((32,), np.float32), **{**OPTIONS, "activation": ("clip", 0.0, 6.0)})
    assert len(calls._plans) == 5, "floats are planned anew: 0.0 == -0.0"


@pytest.mark.peers
def test_wrong_calls_after_right_ones(stub: Any) -> None:
    x, w = stub.array((1, 14, 14, 32)), stub.array((32, 3, 3, 1), offset=1 << 20)
    layer = gpu_conv.Conv(w, **OPTIONS)
    away = stub.array((1, 14, 14, 32), offset=1 << 24)
    layer(x, out=away)
    gpu_conv.conv2d(x, w, out=away, **OPTIONS)
    for offset in (0, 14 * 14 * 32 * 4 - 16, 1 << 20):
        near = stub.array((1, 14, 14, 32), offset=offset)
        for call in (lambda n=near: layer(x, out=n), lambda n=near: gpu_conv.conv2d(x, w, out=n, **OPTIONS)):
            with pytest.raises(ValueError, match="out must not share memory with x or w"):
                call()
    with pytest.raises(TypeError, match="groups"):
        gpu_conv.conv2d(x, w, out=away, **{**OPTIONS, "groups": 32.0})
    gpu_conv.conv2d(x, w, out=away, **{**OPTIONS, "dilations": 1})
    with pytest.raises(TypeError, match="dilations"):
        gpu_conv.conv2d(x, w, out=away, **{**OPTIONS, "dilations": True})


def _microseconds(call: Callable[[], object]) -> float:
    """The best of many short runs: the machine may be busy with other things."""
    best = float("inf")
    for _ in range(100):
        start = time.perf_counter()
        for _ in range(20):
            call()
        best = min(best, (time.perf_counter() - start) / 20)
    return best * 1e6


@pytest.mark.peers
def test_host_cost(stub: Any) -> None:
    """Measured 5 us for a layer, 1.5 for a bound one, 13 for conv2d, allocation included; bounds for slow machines."""
    x, w, bias = stub.array((1, 14, 14, 32)), stub.array((32, 3, 3, 1), offset=1 << 20), stub.array((32,), offset=64)
    layer = gpu_conv.Conv(w, bias, **OPTIONS)
    bound = layer.bind(x, out=stub.array((1, 14, 14, 32), offset=1 << 24))
    assert _microseconds(bound) < 10
    assert _microseconds(lambda: layer(x)) < 30
    assert _microseconds(lambda: gpu_conv.conv2d(x, w, bias, **OPTIONS)) < 60
