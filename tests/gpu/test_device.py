"""The host path on a real GPU, with kernels small enough that their results are known by hand."""

import time

import numpy as np
import pytest

from gpu_conv.cuda import compiler, device, resources
from gpu_conv.cuda.errors import CudaUnavailable
from tests.cuda import tiny

cupy = pytest.importorskip("cupy")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cupy.cuda.is_available(), reason="needs a CUDA device"),
]

SCALE, OFFSET = 0.5, 7  # what tiny.launch packs


@pytest.fixture(autouse=True)
def tiny_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("GPU_CONV_CACHE", str(tmp_path))
    monkeypatch.setattr(device, "load", lambda name: tiny.TEXT)
    monkeypatch.setattr(compiler, "load", lambda name: tiny.TEXT)
    yield
    device._prepare.cache_clear()
    device._load.cache_clear()


def integers(count, dtype="float32"):
    return (cupy.arange(count, dtype=np.int64) % 61 - 30).astype(dtype)


def expected(x, bias=None, factor=3):
    y = cupy.asnumpy(x).astype(np.float64) * SCALE * factor + OFFSET
    return y if bias is None else y + cupy.asnumpy(bias)


def guarded(count, dtype="float32", guard=64):
    """NaN everywhere: a buffer and the view of its middle that a kernel may write."""
    buffer = cupy.full(count + 2 * guard, np.nan, dtype)
    return buffer, buffer[guard : guard + count]


def guards_hold(buffer, guard=64):
    return bool(cupy.isnan(buffer[:guard]).all() and cupy.isnan(buffer[-guard:]).all())


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("count", [1, 127, 128, 200, 256])
def test_pointers_null_pointers_and_the_struct_arrive(count, with_bias):
    buffer, y = guarded(count)
    x, bias = integers(count + 5)[5:], integers(count) if with_bias else None  # a view: its offset must arrive too
    device.run(tiny.launch(count=count), {"x": x, "y": y, "bias": bias, "w": None})
    np.testing.assert_array_equal(cupy.asnumpy(y), expected(x, bias))
    assert guards_hold(buffer)


def test_a_double_instantiation():
    x, (buffer, y) = integers(200, "float64"), guarded(200, "float64")
    device.run(tiny.launch(template=("double", 5)), {"x": x, "y": y})
    np.testing.assert_array_equal(cupy.asnumpy(y), expected(x, factor=5))
    assert guards_hold(buffer)


def test_subnormals_are_kept():
    x = cupy.asarray(np.full(200, 3e-40, "float32"))  # CuPy's own kernels flush subnormals
    y = cupy.full(200, np.nan, "float32")
    device.run(tiny.launch(kernel="scale_only", template=("float",)), {"x": x, "y": y})
    want = np.float32(3e-40) * np.float32(SCALE)
    assert want > 0
    np.testing.assert_array_equal(cupy.asnumpy(y), want)


@pytest.mark.parametrize("share", ["default", "above", "all"])
def test_shared_memory_up_to_the_limit_of_the_device(share):
    limit = device.target().shared_per_block
    size = {"default": 48 * 1024, "above": 48 * 1024 + 4, "all": limit}[share]
    count = size // 4
    x, (buffer, y) = integers(count), guarded(count)
    launch = tiny.launch("reverse", ("float",), grid=(1, 1, 1), block=(256, 1, 1), count=count, shared_bytes=size)
    device.run(launch, {"x": x, "y": y})
    np.testing.assert_array_equal(cupy.asnumpy(y), cupy.asnumpy(x)[::-1])
    assert guards_hold(buffer)


def test_static_and_dynamic_shared_memory_together_may_pass_48_kilobytes():
    x, y = integers(64), cupy.full(64, np.nan, "float32")
    launch = tiny.launch("frames", ("float",), (1, 1, 1), (64, 1, 1), shared_bytes=48 * 1024)  # and 256 static bytes
    device.run(launch, {"x": x, "y": y})
    tile = cupy.asnumpy(x) / SCALE  # frames: local[i] = tile[thread + i], y = local[1] + local[2]
    np.testing.assert_array_equal(cupy.asnumpy(y), np.roll(tile, -1) + np.roll(tile, -2))


def test_more_shared_memory_than_the_device_has_is_refused():
    limit = device.target().shared_per_block
    with pytest.raises(ValueError, match=f"needs {limit + 1} bytes of shared memory"):
        device.run(tiny.launch(shared_bytes=limit + 1), {"x": integers(200), "y": integers(200)})


def test_the_tickets_are_zero_at_every_launch():
    launch = tiny.launch("arrivals", ("float",), grid=(300, 1, 1), block=(32, 1, 1), workspace_bytes=4, ticket_bytes=4)
    for _ in range(3):
        dirt = cupy.full(128, 0xFFFFFFFF, "uint32")  # goes back to the pool, which hands it out again
        del dirt
        y = cupy.full(1, np.nan, "float32")
        device.run(launch, {"y": y})
        assert float(y[0]) == 300
    bound = device.ready(launch, 0).bind({"y": y})
    for _ in range(3):
        y.fill(np.nan)
        bound()
        assert float(y[0]) == 300


def test_an_empty_grid_launches_nothing():
    y = cupy.full(4, np.nan, "float32")
    device.run(tiny.launch(grid=(0, 1, 1)), {"y": y})
    assert cupy.isnan(y).all()


def test_launches_follow_the_order_of_their_own_stream():
    """Two non-blocking streams, each busy for a while before the launch: on another stream it would read NaN."""
    count, results = 1 << 22, []
    launch = tiny.launch(count=count, grid=(-(-count // 128), 1, 1))
    warm = cupy.zeros(count, "float32")
    device.run(launch, {"x": warm, "y": warm.copy()})
    cupy.cuda.Device().synchronize()
    for number in range(2):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            x, y = cupy.full(count, np.nan, "float32"), cupy.full(count, np.nan, "float32")
            final, load = integers(count) + number, cupy.ones(1 << 27, "float32")
            stream.synchronize()
            for _ in range(20):  # some milliseconds, even on the fastest memory
                load *= 2
            x[...] = final
            device.run(launch, {"x": x, "y": y})
            results.append((stream, final, y))
    for stream, final, y in results:
        stream.synchronize()
        np.testing.assert_array_equal(cupy.asnumpy(y), expected(final))


def test_a_launch_does_not_wait_for_the_gpu():
    launch = tiny.launch(workspace_bytes=1024)
    x, y = integers(200), integers(200)
    device.run(launch, {"x": x, "y": y})
    with cupy.cuda.Stream(non_blocking=True) as stream:
        big = cupy.ones(1 << 27, "float32")
        big *= 2
        device.run(launch, {"x": x, "y": y})  # the pool of this stream has its workspace now
        stream.synchronize()
        for _ in range(100):
            big *= 2
        start = time.perf_counter()
        device.run(launch, {"x": x, "y": y})
        waited = time.perf_counter() - start
        assert not stream.done
        stream.synchronize()
    assert waited < 5e-3


@pytest.mark.parametrize("workspace", [False, True])
def test_a_captured_graph_replays_and_owns_its_workspace(workspace):
    if workspace:
        launch = tiny.launch(
            "arrivals", ("float",), grid=(300, 1, 1), block=(32, 1, 1), workspace_bytes=1 << 20, ticket_bytes=4
        )
    else:
        launch = tiny.launch()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x, y = integers(200), cupy.full(200, np.nan, "float32")
        device.run(launch, {"x": x, "y": y})  # loading a kernel cannot be captured
        stream.begin_capture()
        device.run(launch, {"x": x, "y": y})
        device.run(launch, {"x": x, "y": y})
        graph = stream.end_capture()
        # Everything that the pool would hand out again, filled with a pattern that a replay must not touch.
        bystanders = [cupy.full(1 << 18, 0x5A5A5A5A, "uint32") for _ in range(8)]
        for number in range(3):
            y.fill(np.nan)
            x += number
            graph.launch(stream)
            stream.synchronize()
            if workspace:
                assert float(y[0]) == 300
            else:
                np.testing.assert_array_equal(cupy.asnumpy(y), expected(x))
        assert all(bool((bystander == 0x5A5A5A5A).all()) for bystander in bystanders)


@pytest.mark.skipif(cupy.cuda.is_available() and cupy.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
def test_the_arrays_decide_on_the_device():
    with cupy.cuda.Device(1):
        x, y = integers(200), cupy.full(200, np.nan, "float32")
    device.run(tiny.launch(), {"x": x, "y": y})
    assert cupy.cuda.runtime.getDevice() == 0
    with cupy.cuda.Device(1):
        np.testing.assert_array_equal(cupy.asnumpy(y), expected(x))
    with pytest.raises(ValueError, match="one device"):
        device.run(tiny.launch(), {"x": integers(200), "y": y})


def test_target_describes_this_gpu():
    found, properties = device.target(), cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    assert found.multiprocessors == properties["multiProcessorCount"]
    assert found.capability == 10 * properties["major"] + properties["minor"]
    assert found.shared_per_block == properties["sharedMemPerBlockOptin"]
    assert found.bandwidth == 0 or 1e11 < found.bandwidth < 2e13
    with pytest.raises(CudaUnavailable, match="no CUDA device 99"):
        device.target(99)


@pytest.mark.parametrize("name", ["tiny<float, 3>", "reverse<float>", "frames<float>", "spills<float>"])
def test_registers_and_frames_are_those_that_the_driver_reports(name):
    arch = device.target().arch
    compiled = compiler.compile(tiny.TEXT, name, arch)
    kernel, shared = device._load("tiny.cu", name, cupy.cuda.runtime.getDevice())
    assert (kernel.num_regs, kernel.local_size_bytes) == (compiled.registers, compiled.local_bytes)
    assert kernel.shared_size_bytes == shared == compiled.shared_bytes


@pytest.mark.parametrize("threads", [32, 96, 256, 1024])
@pytest.mark.parametrize("shared", [0, 1000, 9000, 40000])
@pytest.mark.parametrize("name", ["tiny<float, 3>", "frames<float>", "spills<float>"])
def test_occupancy_is_that_of_the_driver(name, threads, shared):
    kernel, static = device._load("tiny.cu", name, cupy.cuda.runtime.getDevice())
    found = resources.occupancy(device.target().arch, threads, kernel.num_regs, static + shared)
    want = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(kernel.kernel.ptr, threads, shared)
    assert found.blocks == want


def test_a_repeated_launch_is_cheap_on_the_host():
    launch, operands = tiny.launch(), {"x": integers(200), "y": integers(200)}
    device.run(launch, operands)
    best = float("inf")
    for _ in range(20):
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        for _ in range(100):
            device.run(launch, operands)
        best = min(best, (time.perf_counter() - start) / 100)
    print(f"{best * 1e6:.1f} us per launch")
    assert best < 30e-6
