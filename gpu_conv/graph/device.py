"""Where arrays live. CuPy is never imported here: an array of it proves that it is loaded."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from .ir import Array


def namespace(array: Array) -> ModuleType:
    """The module of an array: numpy or cupy."""
    return np if isinstance(array, (np.ndarray, np.generic)) else sys.modules[type(array).__module__.partition(".")[0]]


def location(array: Array) -> tuple[Any, ...]:
    """What buffers must not be shared across: the device and the current stream; nothing on the host."""
    xp = namespace(array)
    return (array.device.id, xp.cuda.get_current_stream().ptr) if hasattr(xp, "cuda") else ()


def finish(xp: Any) -> None:
    """Wait for the device, so that a duration is that of the work."""
    if hasattr(xp, "cuda"):
        xp.cuda.get_current_stream().synchronize()
