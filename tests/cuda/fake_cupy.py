"""Just enough of CuPy to run the host path without a GPU: it records what the driver would have been asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


@dataclass
class Pointer:
    """``cupy.cuda.MemoryPointer``."""

    ptr: int
    device_id: int = 0
    log: list[Any] | None = None

    def memset_async(self, value: int, size: int) -> None:
        self.log.append(("memset", self.ptr, value, size))


@dataclass
class Array:
    """``cupy.ndarray`` as far as a launch looks at it."""

    data: Pointer


@dataclass
class Kernel:
    """``cupy.RawKernel``, which is loaded when it is made, and the ``Function`` in it."""

    cupy: Any
    name: str
    cubin: bytes
    device_id: int
    limits: list[int] = field(default_factory=list)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "max_dynamic_shared_size_bytes":
            self.limits.append(value)
        object.__setattr__(self, name, value)

    @property
    def kernel(self) -> Any:
        return self._launch

    def _launch(self, grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
        self.cupy.log.append(
            SimpleNamespace(
                kernel=self, device=self.cupy.device, grid=grid, block=block, args=list(args), shared_mem=shared_mem
            )
        )


class FakeCupy(ModuleType):
    """Two devices with the attributes of an H100."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.attributes = {
            "MultiProcessorCount": 132,
            "MaxSharedMemoryPerBlockOptin": 232448,
            "MemoryClockRate": 2619000,
            "GlobalMemoryBusWidth": 5120,
        }
        self.log: list[Any] = []
        self.kernels: list[Kernel] = []
        self.device = 0
        self.capturing = False
        self.driver_works = True
        self.refuse: str | None = None
        self.cuda = SimpleNamespace(
            Device=self._device_type(),
            alloc=lambda size: self._allocate("alloc", size),
            malloc_async=lambda size: self._allocate("malloc_async", size),
            get_current_stream=lambda: SimpleNamespace(is_capturing=lambda: self.capturing, synchronize=lambda: None),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDevice=lambda: self.device,
                getDeviceCount=self._count,
                getDeviceProperties=lambda device: {"name": b"NVIDIA H100 80GB HBM3"},
            ),
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
        )

    def RawModule(self, *, path: str) -> Any:
        if self.refuse:
            raise CUDADriverError(self.refuse)
        cubin = Path(path).read_bytes()

        def get_function(name: str) -> Kernel:
            self.kernels.append(Kernel(self, name, cubin, self.device))
            return self.kernels[-1]

        return SimpleNamespace(get_function=get_function)

    def _count(self) -> int:
        if not self.driver_works:
            raise CUDARuntimeError("cudaErrorInsufficientDriver")
        return 2

    def _allocate(self, how: str, size: int) -> Pointer:
        self.log.append((how, size))
        return Pointer(0xABC000, self.device, self.log)

    def _device_type(fake) -> type:
        class Device:
            compute_capability = "90"

            def __init__(self, number: int) -> None:
                if number >= 2:
                    raise CUDARuntimeError("cudaErrorInvalidDevice")
                self.number, self.attributes = number, fake.attributes

            def __enter__(self) -> None:
                self.before, fake.device = fake.device, self.number

            def __exit__(self, *error: object) -> None:
                fake.device = self.before

        return Device
