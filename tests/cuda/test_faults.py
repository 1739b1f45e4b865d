"""A device that fails at every single call that it gets: one error type each, the repair in it, and nothing broken."""

import contextlib
import copy
import errno
import os
import subprocess
import sys
import types

import numpy as np
import pytest

import gpu_conv
from gpu_conv import emulator
from gpu_conv.cpu import scratch
from gpu_conv.cuda import (
    CudaUnavailable,
    DriverTooOld,
    LaunchFailed,
    NvrtcMissing,
    OutOfMemory,
    UnsupportedArchitecture,
    compiler,
    device,
)
from tests.cuda import tiny
from tests.cuda.conftest import forget
from tests.cuda.fake_cupy import Array, CUDADriverError, CUDARuntimeError, FakeCupy, Pointer

pytest.importorskip("cuda.bindings.nvrtc")

OPERANDS = {"x": Array(Pointer(0x1000, 1)), "y": Array(Pointer(0x2000, 1)), "bias": None}


class PoolError(MemoryError):
    """``cupy.cuda.memory.OutOfMemoryError``."""


class Faulty(FakeCupy):
    """Counts the calls that reach the driver, and fails at one of them."""

    def __init__(self):
        super().__init__()
        self.calls, self.fail_at, self.error = [], None, None
        runtime = self.cuda.runtime
        for owner, name in (
            (self, "RawModule"),
            (self.cuda, "alloc"),
            (self.cuda, "malloc_async"),
            (runtime, "getDeviceCount"),
            (runtime, "getDeviceProperties"),
        ):
            setattr(owner, name, self._counted(name, getattr(owner, name)))

    def _counted(self, name, call):
        def counted(*args, **kwargs):
            self.calls.append(name)
            if len(self.calls) - 1 == self.fail_at:
                raise self.error
            return call(*args, **kwargs)

        return counted

    def RawModule(self, *, path):
        module = super().RawModule(path=path)
        get = module.get_function

        def get_function(name):
            kernel = get(name)
            launch = self._counted("launch", kernel._launch)
            return types.SimpleNamespace(kernel=launch, limits=kernel.limits)

        return types.SimpleNamespace(get_function=get_function)


@pytest.fixture
def cupy(stand_in):
    return stand_in(Faulty())


LAUNCH = tiny.launch(workspace_bytes=64, shared_bytes=60 * 1024)
PATH = ["getDeviceCount", "getDeviceProperties", "RawModule", "alloc", "launch"]  # what a first launch asks for

FAULTS = {
    "no driver": ("getDeviceCount", CUDARuntimeError("cudaErrorInsufficientDriver"), DriverTooOld, "cuda12"),
    "no device": ("getDeviceProperties", CUDARuntimeError("cudaErrorInvalidDevice"), CudaUnavailable, "device 1"),
    "driver too old": ("RawModule", CUDADriverError("CUDA_ERROR_NO_BINARY_FOR_GPU"), DriverTooOld, "update the driver"),
    "no memory for code": ("RawModule", CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY"), OutOfMemory, "free_all_blocks"),
    "the pool is empty": ("alloc", PoolError("Out of memory allocating 64 bytes"), OutOfMemory, "64 bytes of work"),
    "malloc fails": ("alloc", CUDARuntimeError("cudaErrorMemoryAllocation"), OutOfMemory, "free_all_blocks"),
    "no memory to launch": ("launch", CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY"), OutOfMemory, "smaller batch"),
    "out of registers": ("launch", CUDADriverError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), LaunchFailed, "direct"),
    "an earlier fault": ("launch", CUDADriverError("CUDA_ERROR_ILLEGAL_ADDRESS"), LaunchFailed, "LAUNCH_BLOCKING"),
}


def launches(cupy):
    """What was enqueued, comparably."""
    found = [entry for entry in cupy.log if isinstance(entry, types.SimpleNamespace)]
    return [(e.kernel.name, e.device, e.grid, e.block, e.args[:-1], e.args[-1].tobytes(), e.shared_mem) for e in found]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_failure_has_its_type_and_its_repair_and_leaves_no_trace(cupy, fault):
    call, error, kind, repair = FAULTS[fault]
    operands = copy.deepcopy(OPERANDS)
    cupy.fail_at, cupy.error = PATH.index(call), error
    with pytest.raises(kind, match=repair) as caught:
        device.run(LAUNCH, operands)
    assert str(error) in str(caught.value)
    assert caught.value.__cause__ is error
    assert cupy.calls == PATH[: cupy.fail_at + 1], "nothing is tried after a failure"
    assert launches(cupy) == []
    assert (cupy.device, operands) == (0, OPERANDS)

    cupy.fail_at = None
    device.run(LAUNCH, operands)  # the failure is not remembered
    after = launches(cupy)
    cupy.log.clear()
    forget()
    device.run(LAUNCH, OPERANDS)
    assert after == launches(cupy) and len(after) == 1


def test_the_kinds_are_told_apart_and_still_are_what_they_were():
    kinds = (NvrtcMissing, DriverTooOld, OutOfMemory, LaunchFailed, UnsupportedArchitecture)
    assert not any(issubclass(a, b) for a in kinds for b in kinds if a is not b)
    assert issubclass(NvrtcMissing, CudaUnavailable) and issubclass(DriverTooOld, CudaUnavailable)
    assert issubclass(OutOfMemory, MemoryError)


def test_a_gpu_that_nvrtc_does_not_know_has_its_own_error(cupy, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(device, "arch_of", lambda major, minor: "sm_999")
        with pytest.raises(UnsupportedArchitecture, match=r"sm_999.*pip install -U nvidia-cuda-nvrtc"):
            device.run(LAUNCH, OPERANDS)
    forget()
    device.run(LAUNCH, OPERANDS)
    assert len(launches(cupy)) == 1


def test_a_missing_nvrtc_has_its_own_error_and_may_be_installed_later(cupy, monkeypatch):
    compiler._nvrtc.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cuda.bindings", None)
        with pytest.raises(NvrtcMissing, match=r'pip install "gpu-conv\[cuda13\]"'):
            device.run(LAUNCH, OPERANDS)
    device.run(LAUNCH, OPERANDS)
    assert len(launches(cupy)) == 1


def test_a_full_temporary_folder_is_an_os_error_and_no_more(cupy, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            device.run(LAUNCH, OPERANDS)
    device.run(LAUNCH, OPERANDS)
    assert len(launches(cupy)) == 1


# ------------------------------------------------------------------------------------- whole calls, on NumPy arrays


@contextlib.contextmanager
def unchanged(*arrays):
    before = [array.tobytes() for array in arrays]
    yield
    assert [array.tobytes() for array in arrays] == before


@pytest.fixture
def arrays():
    rng = np.random.default_rng(7)
    return rng.standard_normal((2, 8, 9, 9)).astype("f4"), rng.standard_normal((8, 1, 3, 3)).astype("f4")


@pytest.mark.parametrize("error", [OutOfMemory("no workspace"), LaunchFailed("not launched")])
def test_a_call_that_fails_on_the_device_leaves_its_arrays_and_can_be_repeated(arrays, monkeypatch, error):
    x, w = arrays
    layer = gpu_conv.Conv(w, groups=8, padding=1, device="emulator")
    want, out = layer(x), np.full((2, 8, 9, 9), 7, np.float32)

    def fail(launch, operands):
        raise error

    with monkeypatch.context() as patch, unchanged(x, w, out):
        patch.setattr(emulator, "run", fail)
        for call in (layer, lambda x, out: gpu_conv.conv(x, w, groups=8, padding=1, out=out, device="emulator")):
            with pytest.raises(type(error), match=str(error)):
                call(x, out=out)
    np.testing.assert_array_equal(layer(x, out=out), want)
    np.testing.assert_array_equal(gpu_conv.conv(x, w, groups=8, padding=1, device="emulator"), want)


def test_memory_that_runs_out_on_the_cpu_is_a_memory_error_and_can_be_repeated(arrays, monkeypatch):
    x, w = arrays
    x, w = np.concatenate([x] * 2), np.ascontiguousarray(np.broadcast_to(w, (8, 8, 3, 3)))
    want = gpu_conv.conv(x, w, padding=1)
    layer = gpu_conv.Conv(w, padding=1)
    monkeypatch.setattr(scratch, "_arena", scratch._Arena())  # a thread that has no working memory yet

    def fail(*args):
        raise MemoryError("no block")

    with monkeypatch.context() as patch, unchanged(x, w):
        patch.setattr(scratch.np, "empty", fail)
        for call in (layer, lambda x: gpu_conv.conv(x, w, padding=1)):
            with pytest.raises(MemoryError):
                call(x)
    np.testing.assert_array_equal(layer(x), want)
    np.testing.assert_array_equal(gpu_conv.conv(x, w, padding=1), want)


def test_the_command_says_it_in_one_line():
    """A failure of the device is for the user: no traceback, and a status that scripts see."""
    pytest.importorskip("typer")
    code = (
        "import gpu_conv.emulator as e, gpu_conv.cuda as c, sys\n"
        "def run(*a): raise c.OutOfMemory('no workspace: free arrays')\n"
        "e.run = e.emulator.Emulator.run = run\n"
        "from gpu_conv.cli import main\n"
        "sys.argv = 'gpu-conv emulate --x 1,4,5,5 --w 4,1,3,3 --groups 4'.split()\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False
    )
    assert done.returncode == 2
    assert "free arrays" in done.stderr and "Traceback" not in done.stderr
