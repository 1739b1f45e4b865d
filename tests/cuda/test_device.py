import sys
import time

import numpy as np
import pytest

from gpu_conv.cuda import CudaUnavailable, compiler, device
from gpu_conv.cuda.targets import KNOWN_TARGETS, arch_of
from gpu_conv.launch import POINTERS
from tests.cuda import tiny
from tests.cuda.conftest import forget
from tests.cuda.fake_cupy import Array, FakeCupy, Pointer

pytest.importorskip("cuda.bindings.nvrtc")

X, Y = Array(Pointer(0x1000)), Array(Pointer(0x2000))


@pytest.fixture
def cupy(stand_in):
    return stand_in(FakeCupy())


def test_a_launch_passes_eight_pointers_and_one_struct(cupy):
    launch = tiny.launch(shared_bytes=96)
    device.run(launch, {"x": X, "y": Y, "bias": Array(Pointer(0x3000)), "residual": None})
    (call,) = cupy.log
    assert (call.grid, call.block, call.shared_mem, call.device) == ((2, 1, 1), (128, 1, 1), 96, 0)
    addresses = [pointer and pointer.ptr for pointer in call.args[:-1]]
    assert dict(zip(POINTERS, addresses, strict=True)) == {
        "x": 0x1000,
        "w": None,
        "bias": 0x3000,
        "residual": None,
        "x_zero_point": None,
        "w_zero_point": None,
        "y": 0x2000,
        "workspace": None,
    }
    params = call.args[-1]
    assert isinstance(params, np.void)
    assert params.tobytes() == launch.params
    assert np.frombuffer(params, tiny.PARAMS)["offsets"].tolist() == [[1, 2, 7]]


def test_the_cubin_is_the_one_for_this_gpu_under_its_mangled_name(cupy):
    device.run(tiny.launch(), {"x": X, "y": Y})
    compiled = compiler.compile(tiny.TEXT, "tiny<float, 3>", "sm_90a")
    (kernel,) = cupy.kernels
    assert (kernel.name, kernel.cubin) == (compiled.lowered, compiled.cubin)
    assert kernel.limits == []


def test_a_kernel_is_loaded_once_per_device_and_instantiation(cupy):
    for arguments in ({}, {}, {"count": 5}, {"template": ("float", 4)}):
        device.run(tiny.launch(**arguments), {"x": X, "y": Y})
    there = {"x": Array(Pointer(0x1000, 1)), "y": Array(Pointer(0x2000, 1))}
    device.run(tiny.launch(), there)
    device.run(tiny.launch(), there)
    assert [(kernel.name[:12], kernel.device_id) for kernel in cupy.kernels] == [
        ("_Z4tinyIfLi3", 0),
        ("_Z4tinyIfLi4", 0),
        ("_Z4tinyIfLi3", 1),
    ]
    assert [call.kernel.device_id for call in cupy.log] == [0, 0, 0, 0, 1, 1]


def test_work_goes_to_the_device_of_the_arrays(cupy):
    there = {"x": Array(Pointer(0x1000, 1)), "y": Array(Pointer(0x2000, 1))}
    device.run(tiny.launch(workspace_bytes=64), there)
    assert cupy.log[0] == ("alloc", 64)
    assert cupy.log[-1].device == 1
    assert cupy.log[-1].args[POINTERS.index("workspace")].device_id == 1
    assert cupy.device == 0


def test_operands_on_two_devices_are_named(cupy):
    with pytest.raises(ValueError, match="one device: x is on device 1, y on 0"):
        device.run(tiny.launch(), {"x": Array(Pointer(0x1000, 1)), "y": Y})
    assert cupy.log == []


@pytest.mark.parametrize("capturing", [False, True])
def test_the_tickets_are_zeroed_on_the_stream_and_the_workspace_belongs_to_a_captured_graph(cupy, capturing):
    cupy.capturing = capturing
    device.run(tiny.launch(workspace_bytes=4096, ticket_bytes=128), {"x": X, "y": Y})
    allocated, zeroed, call = cupy.log
    assert allocated == ("malloc_async" if capturing else "alloc", 4096)
    assert zeroed == ("memset", 0xABC000, 0, 128)
    assert call.args[POINTERS.index("workspace")].ptr == 0xABC000


def test_a_bound_launch_keeps_its_workspace(cupy):
    call = device.ready(tiny.launch(workspace_bytes=4096, ticket_bytes=128), 0).bind({"x": X, "y": Y})
    assert cupy.log == [("alloc", 4096), ("memset", 0xABC000, 0, 128)]
    cupy.capturing = True
    call()
    call()
    assert [entry.args[POINTERS.index("workspace")].ptr for entry in cupy.log[2:]] == [0xABC000] * 2


@pytest.mark.parametrize("grid", [(0, 1, 1), (4, 0, 1), (4, 1, 0)])
def test_an_empty_grid_does_nothing(cupy, grid):
    device.run(tiny.launch(grid=grid, workspace_bytes=8), {"x": X, "y": Y})
    assert cupy.log == []
    assert cupy.kernels == []


def test_more_than_48_kilobytes_of_shared_memory_are_asked_for(cupy):
    arguments = {"kernel": "frames", "template": ("float",)}  # 256 bytes of static shared memory
    device.run(tiny.launch(**arguments, shared_bytes=48 * 1024 - 256), {"x": X, "y": Y})
    (kernel,) = cupy.kernels
    assert kernel.limits == []
    device.run(tiny.launch(**arguments, shared_bytes=48 * 1024 - 255), {"x": X, "y": Y})
    device.run(tiny.launch(**arguments, shared_bytes=232448 - 256), {"x": X, "y": Y})
    device.run(tiny.launch(**arguments, shared_bytes=60 * 1024), {"x": X, "y": Y})
    assert cupy.kernels == [kernel]
    assert set(kernel.limits) == {232448 - 256}
    with pytest.raises(ValueError, match=r"frames<float> needs 232449 bytes .* H100 80GB HBM3 allows 232448"):
        device.run(tiny.launch(**arguments, shared_bytes=232448 - 255), {"x": X, "y": Y})


def test_target_is_what_the_driver_says(cupy):
    found = device.target()
    assert (found.arch, found.multiprocessors, found.shared_per_block) == ("sm_90a", 132, 232448)
    assert found.name == "NVIDIA H100 80GB HBM3"
    assert found.bandwidth == pytest.approx(3.352e12, rel=1e-3)  # the data sheet: 3.35 TB/s
    assert device.target(0) is found
    with pytest.raises(CudaUnavailable, match="no CUDA device 7"):
        device.target(7)


def test_target_without_a_memory_clock_has_no_bandwidth(cupy):
    del cupy.attributes["MemoryClockRate"]
    assert device.target().bandwidth == 0


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((7, 5), "sm_75"), ((8, 0), "sm_80"), ((9, 0), "sm_90a"), ((10, 0), "sm_100"), ((12, 1), "sm_121")],
)
def test_architecture_of_a_compute_capability(capability, arch):
    assert arch_of(*capability) == arch


def test_known_targets_are_keyed_by_their_architecture():
    assert set(KNOWN_TARGETS) == {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"}
    assert all(known.arch == arch and known.bandwidth == 0 for arch, known in KNOWN_TARGETS.items())


def test_missing_cupy_names_the_repair(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    forget()
    with pytest.raises(CudaUnavailable, match=r'CuPy: pip install "gpu-conv\[cuda13\]".*cuda12'):
        device.target()
    forget()


def test_missing_driver_names_the_repair(cupy):
    cupy.driver_works = False
    with pytest.raises(CudaUnavailable, match=r"no NVIDIA driver.*nvidia-smi.*cudaErrorInsufficientDriver"):
        device.target()
    cupy.driver_works = True
    assert device.target().multiprocessors == 132  # a failure is not remembered


def test_a_driver_that_refuses_the_cubin_names_the_repair(cupy):
    cupy.refuse = "CUDA_ERROR_NO_BINARY_FOR_GPU"
    with pytest.raises(CudaUnavailable, match=r"refuses tiny<float, 3>, compiled for sm_90a: update.*NO_BINARY"):
        device.run(tiny.launch(), {"x": X, "y": Y})


def test_a_repeated_launch_costs_the_host_a_few_microseconds(cupy):
    launch, operands = tiny.launch(), {"x": X, "w": X, "bias": X, "y": Y}
    device.run(launch, operands)
    device._prepare(launch, 0)._function = lambda *args: None  # the fake's own cost is not of interest
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            device.run(launch, operands)
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 20e-6  # measured: 2 to 4 us; the margin is for a busy machine


@pytest.mark.peers
def test_real_cupy_takes_these_arguments():
    """CuPy converts arguments before it asks for a device, so the types are checked without one."""
    real = pytest.importorskip("cupy")
    if real.cuda.is_available():
        pytest.skip("tests/gpu launches for real")
    from cupy.cuda.function import Function

    function, stream = Function.__new__(Function), type("Stream", (), {"ptr": 0})
    memory = real.cuda.MemoryPointer(real.cuda.UnownedMemory(1 << 40, 1024, None, 0), 256)
    view = real.ndarray((8,), np.float32, memory)
    assert view.data.ptr == (1 << 40) + 256
    assert view.data.device_id == 0
    params = np.frombuffer(tiny.launch().params, np.dtype((np.void, len(tiny.launch().params))))
    with pytest.raises(TypeError, match="Unsupported type"):
        function((1,), (1,), (object(),), 0, stream)
    with pytest.raises(real.cuda.runtime.CUDARuntimeError, match="InsufficientDriver"):  # past the conversion
        function((1,), (1,), (view.data, None, params), 0, stream)
