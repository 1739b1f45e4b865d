"""Where the code under test convolves: NumPy, the emulated GPU, the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from .. import execute
from ..cuda import CudaUnavailable

DEVICES = ("numpy", "emulator", "cuda")


@dataclass(frozen=True)
class Device:
    """A place to convolve.

    Attributes:
        name: one of ``DEVICES``.
        xp: the library of its arrays, NumPy or CuPy.
    """

    name: str
    xp: ModuleType

    def asarray(self, array: Any) -> Any:
        """A NumPy array as an array of this device."""
        return self.xp.asarray(array)

    def asnumpy(self, array: Any) -> np.ndarray[Any, Any]:
        """An array of this device as a NumPy array."""
        host: np.ndarray[Any, Any] = array.get() if self.name == "cuda" else np.asarray(array)
        return host


def missing(name: str) -> str | None:
    """What a device lacks here, with the command that brings it; None where it can be used.

    Raises:
        ValueError: unknown name.
    """
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    try:
        if name != "numpy":
            from ..cuda import compiler

            compiler.nvrtc_version()
        if name == "cuda":
            from ..cuda import device

            device.target()
    except CudaUnavailable as error:
        return str(error)
    return None


@contextmanager
def use(name: str) -> Iterator[Device]:
    """Within this block, NumPy arrays are convolved by the CUDA kernels in the emulator if ``name`` is "emulator".

    Calls that name a device keep it, and threads started in the block do not inherit it.

    Raises:
        ValueError: unknown name.
        CudaUnavailable: the device cannot be used here.
    """
    if reason := missing(name):
        raise CudaUnavailable(reason)
    if name == "cuda":
        from ..cuda import device

        yield Device(name, device.cupy())
        return
    with execute.instead("emulator" if name == "emulator" else "cpu"):
        yield Device(name, np)
