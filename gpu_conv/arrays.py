"""Which array library is this? Answered without importing any that is not loaded already."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np

from .problem import ITEMSIZE

Array = Any  # a NumPy or CuPy array: both have shape, strides, dtype, transpose, reshape


def library(array: object, name: str) -> str:
    """``"numpy"`` or ``"cupy"``.

    Raises:
        TypeError: anything else, with what would work instead.
    """
    if isinstance(array, np.ndarray):
        return "numpy"
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return "cupy"
    kind = f"{type(array).__module__}.{type(array).__qualname__}"
    raise TypeError(
        f"{name} must be a NumPy or CuPy array, got {kind}, which has neither DLPack nor the CUDA array interface; "
        "numpy.asarray or cupy.asarray would convert it"
    )


def common_library(**arrays: object) -> str:
    """The one library that all arrays belong to; x and w must be given, the others may be None."""
    kinds = {name: library(a, name) for name, a in arrays.items() if a is not None or name in ("x", "w")}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name} is a {kind} array" for name, kind in kinds.items())
        raise TypeError(f"all arrays of one call must live in one library, but {listed}")
    return next(iter(kinds.values()))


def namespace(kind: str) -> Any:
    """The module with ``empty``, ``asarray`` ... for a library's name; it is loaded already."""
    return sys.modules[kind]


@cache
def name_of(dtype: np.dtype[Any]) -> str:
    """Its name, which NumPy puts together anew each time: 3 us, ten times per call."""
    return str(dtype.name)


def dtype_name(array: Array, name: str) -> str:
    """The array's dtype by name; TypeError for one that no operator takes."""
    found = name_of(array.dtype)
    if found not in ITEMSIZE:
        raise TypeError(f"{name} has dtype {array.dtype}; convolution takes {', '.join(ITEMSIZE)}")
    if not array.dtype.isnative:
        raise TypeError(f"{name} has dtype {array.dtype} with foreign byte order; {name}.astype({found!r}) would work")
    return found


def address(array: Array) -> int:
    """Address of the first element (not of the lowest byte: strides may be negative)."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def overlap(a: Array, b: Array) -> bool:
    """Whether the memory extents of two arrays of one library meet."""
    return bool(np.may_share_memory(a, b) if isinstance(a, np.ndarray) else sys.modules["cupy"].may_share_memory(a, b))
