"""Launches on CuPy arrays. The only file that imports CuPy.

Nothing here synchronises. A launch goes to the current stream of the device that holds the arrays, and its workspace is
allocated in the order of that stream, so a launch can be captured in a CUDA graph once its kernel has been loaded.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gpu_conv.cuda import compiler
from gpu_conv.cuda.errors import CudaUnavailable, DriverTooOld, LaunchFailed, OutOfMemory
from gpu_conv.cuda.source import load
from gpu_conv.cuda.targets import arch_of
from gpu_conv.cuda.tensor_maps import encoded
from gpu_conv.launch import POINTERS, Launch, Target

_OPERANDS = POINTERS[:-1]  # the workspace comes last, and from here
_DEFAULT_SHARED = 48 * 1024  # more has to be asked for, kernel by kernel


def run(launch: Launch, operands: Mapping[str, Any]) -> None:
    """Enqueue ``launch`` on the current stream of the device that holds ``operands["y"]``.

    Args:
        launch: what to run. A grid with a zero is an empty result: nothing is launched.
        operands: CuPy arrays by the names in ``POINTERS``; missing or None becomes a null pointer. ``y`` is written.

    Raises:
        ValueError: the operands are on different devices, or the launch wants more shared memory than the device has.
        CudaUnavailable: NVRTC is missing (NvrtcMissing), or the driver refuses its kernels (DriverTooOld).
        UnsupportedArchitecture: NVRTC has nothing for this GPU.
        OutOfMemory: no memory for the workspace or the kernel's code.
        LaunchFailed: the driver refused the launch.

    After an error nothing has been enqueued and nothing is remembered of it: the same call may be made again.
    """
    if 0 not in launch.grid:
        _prepare(launch, operands["y"].data.device_id)(operands)


def ready(launch: Launch, device_id: int) -> Ready:
    """What ``run`` does for one launch on one device, for callers that keep it. The grid must have no zero."""
    return _prepare(launch, device_id)


def settle() -> None:
    """Wait for the current stream, so that any other may read what was written; not while it is being captured."""
    stream = _cupy().cuda.get_current_stream()
    if not stream.is_capturing():
        stream.synchronize()


def cupy() -> Any:
    """CuPy; CudaUnavailable where it is missing or finds no driver."""
    return _cupy()


def target(device_id: int | None = None) -> Target:
    """The GPU to plan for: the current device, or the one with this number.

    ``bandwidth`` is the peak of its memory, two transfers per clock: an upper bound of what a copy reaches.

    Raises:
        CudaUnavailable: there is no CuPy, no driver or no such device.
    """
    return _target(_cupy().cuda.runtime.getDevice() if device_id is None else device_id)


@cache
def _target(device_id: int) -> Target:
    cuda = _cupy().cuda
    try:
        attributes = cuda.Device(device_id).attributes
        capability = cuda.Device(device_id).compute_capability  # "90" for 9.0
        name = cuda.runtime.getDeviceProperties(device_id)["name"]
    except cuda.runtime.CUDARuntimeError as error:
        raise CudaUnavailable(f"there is no CUDA device {device_id}: {error}") from error
    kilohertz, bits = attributes.get("MemoryClockRate", 0), attributes.get("GlobalMemoryBusWidth", 0)
    return Target(
        arch=arch_of(int(capability[:-1]), int(capability[-1])),
        multiprocessors=attributes["MultiProcessorCount"],
        shared_per_block=attributes["MaxSharedMemoryPerBlockOptin"],
        bandwidth=2.0 * kilohertz * 1e3 * bits / 8,
        name=name.decode() if isinstance(name, bytes) else name,
    )


class Ready:
    """A launch bound to a loaded kernel: a call collects eight pointers, encodes tensor maps of them, and launches."""

    __slots__ = ("_cuda", "_device_id", "_function", "_launch", "_maps", "_params", "_refusals")

    def __init__(self, launch: Launch, device_id: int) -> None:
        self._cuda = _cupy().cuda
        self._refusals = (self._cuda.driver.CUDADriverError, self._cuda.runtime.CUDARuntimeError, MemoryError)
        self._device_id = device_id
        self._launch = launch
        self._maps = [(tensor_map, POINTERS.index(tensor_map.operand)) for tensor_map in launch.tensor_maps]
        # CuPy copies a NumPy scalar into the kernel's parameters by value. A void scalar costs 7.5 us per launch, an
        # array of size one 9.3, a structured array 17 (H100, CuPy 14.2).
        self._params = np.frombuffer(launch.params, np.dtype((np.void, len(launch.params))))[0]
        with self._cuda.Device(device_id):
            kernel, static_bytes = _load(launch.source, launch.name_expression, device_id)
            _allow_shared_memory(kernel, launch, static_bytes, target(device_id))
            self._function = kernel.kernel

    def __call__(self, operands: Mapping[str, Any]) -> None:
        self._enqueue(*self._arguments(operands))

    def bind(self, operands: Mapping[str, Any]) -> Callable[[], None]:
        """The call with its operands fixed."""
        return partial(self._enqueue, *self._arguments(operands), self._own_workspace())

    def _enqueue(self, pointers: list[Any], maps: list[Any], workspace: Any = None) -> None:
        if self._cuda.runtime.getDevice() != self._device_id:
            with self._cuda.Device(self._device_id):
                self._enqueue(pointers, maps, workspace)
            return
        launch = self._launch
        if workspace is None and launch.workspace_bytes:
            workspace = self._workspace()
        try:
            arguments = (*pointers, workspace, self._params, *maps)
            self._function(launch.grid, launch.block, arguments, launch.shared_bytes)
        except self._refusals as error:
            raise _refused(launch, error) from error

    def _arguments(self, operands: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
        """The pointers, and the tensor maps: their bytes are copied like the struct, wherever they lie."""
        # CuPy passes a MemoryPointer as the address (a view's offset included) and None as a null pointer.
        pointers: list[Any] = []
        for name in _OPERANDS:
            pointer = operands.get(name)
            if pointer is not None:
                pointer = pointer.data
                if pointer.device_id != self._device_id:
                    raise ValueError(
                        f"all operands must be on one device: {name} is on device {pointer.device_id}, "
                        f"y on {self._device_id}"
                    )
            pointers.append(pointer)
        return pointers, [encoded(tensor_map, pointers[i].ptr) for tensor_map, i in self._maps]

    def _own_workspace(self) -> Any:
        """Memory for all calls of a bound launch, its tickets zero: in a graph it needs no node, others three."""
        if not self._launch.workspace_bytes or self._cuda.get_current_stream().is_capturing():
            return None
        with self._cuda.Device(self._device_id):
            workspace = self._workspace()
            settle()  # a call may come on another stream
        return workspace

    def _workspace(self) -> Any:
        # CuPy's pool would hand the block to others while a captured graph still uses it on every replay; memory of
        # malloc_async becomes a pair of nodes of the graph, which owns it.
        launch = self._launch
        capturing = self._cuda.get_current_stream().is_capturing()
        try:
            workspace = (self._cuda.malloc_async if capturing else self._cuda.alloc)(launch.workspace_bytes)
            if launch.ticket_bytes:
                workspace.memset_async(0, launch.ticket_bytes)
        except self._refusals as error:
            raise _refused(launch, error) from error
        return workspace


# A launch per layer and input shape; dropping one costs its preparation, not the loaded kernel.
_prepare = lru_cache(maxsize=4096)(Ready)


@cache
def _load(source: str, name_expression: str, device_id: int) -> tuple[Any, int]:
    """A CuPy ``RawKernel``, loaded into ``device_id``, the current device, and its bytes of static shared memory."""
    cupy = _cupy()
    arch = target(device_id).arch
    compiled = compiler.compile(load(source), name_expression, arch)
    with tempfile.TemporaryDirectory(prefix="gpu_conv-") as directory:
        # CuPy remembers modules by path: the digest keeps one path from ever naming two kernels.
        path = Path(directory, f"{hashlib.sha256(compiled.cubin).hexdigest()}.cubin")
        path.write_bytes(compiled.cubin)
        try:
            return cupy.RawModule(path=str(path)).get_function(compiled.lowered), compiled.shared_bytes
        except cupy.cuda.driver.CUDADriverError as error:
            if _no_memory(error):
                raise OutOfMemory(
                    f"the GPU has no memory for the code of {name_expression}. {_FREE} {error}"
                ) from error
            raise DriverTooOld(
                f"the driver refuses {name_expression}, compiled for {arch}: update the driver, or install the NVRTC "
                f'that fits it with pip install "gpu-conv[cuda12]" or "gpu-conv[cuda13]". {error}'
            ) from error


_FREE = (
    "Free arrays and return what CuPy's pool keeps, cupy.get_default_memory_pool().free_all_blocks(), or convolve a "
    "smaller batch."
)


def _no_memory(error: Exception) -> bool:
    # cudaErrorMemoryAllocation of the runtime, CUDA_ERROR_OUT_OF_MEMORY of the driver, and CuPy's pool
    return isinstance(error, MemoryError) or any(s in str(error) for s in ("MemoryAllocation", "OUT_OF_MEMORY"))


def _refused(launch: Launch, error: Exception) -> OutOfMemory | LaunchFailed:
    if _no_memory(error):
        return OutOfMemory(
            f"{launch.name_expression} needs {launch.workspace_bytes} bytes of workspace, which the GPU does not have. "
            f"{_FREE} {error}"
        )
    return LaunchFailed(
        f"the driver did not launch {launch.name_expression} (grid {launch.grid}, block {launch.block}, "
        f"{launch.shared_bytes} bytes of shared memory). If an earlier kernel of the process failed, "
        'CUDA_LAUNCH_BLOCKING=1 shows which, and only a new process can use the GPU; else kernel="direct" asks for '
        f"the least of it. {error}"
    )


def _allow_shared_memory(kernel: Any, launch: Launch, static_bytes: int, target: Target) -> None:
    total = static_bytes + launch.shared_bytes
    if total > target.shared_per_block:
        raise ValueError(
            f"{launch.name_expression} needs {total} bytes of shared memory per block, "
            f"{target.name} allows {target.shared_per_block}"
        )
    if total > _DEFAULT_SHARED:
        # All that the device allows: launches of one kernel differ in size, and a later one must not lower the limit.
        kernel.max_dynamic_shared_size_bytes = target.shared_per_block - static_bytes


@cache
def _cupy() -> Any:
    """CuPy with a driver that works."""
    try:
        import cupy
    except ImportError as error:
        raise CudaUnavailable(
            f'a GPU needs CuPy: pip install "gpu-conv[cuda13]" (or "gpu-conv[cuda12]" for an older driver). {error}'
        ) from error
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DriverTooOld(
            "CuPy finds no NVIDIA driver that it can use: install one (nvidia-smi shows its version), or take the CuPy "
            f'that fits it with pip install "gpu-conv[cuda12]". {error}'
        ) from error
    return cupy
