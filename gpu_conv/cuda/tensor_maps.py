"""What a ``TensorMap`` describes, at one address, as the 128 bytes that the copy engine reads: the driver encodes it.

``cuda.bindings.driver.cuTensorMapEncodeTiled`` writes into memory of a Python object, aligned to 16 bytes, where the
driver asks for 64. So the driver's own function is called here, on memory that is aligned. It comes from the library
that CuPy has loaded: the first call of ``cuda.bindings.driver`` looks all functions up that it knows, and
compute-sanitizer counts each that this driver has not as an error.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np

from gpu_conv.cuda.errors import LaunchFailed
from gpu_conv.launch import MAPPED, TensorMap

BYTES, _ALIGNMENT = 128, 64
_TYPES = {"uint8": 0, "int8": 0, "int32": 3, "float16": 6, "float32": 7, "float64": 8, "bfloat16": 9}
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_NO_INTERLEAVE, _ZEROS_OUTSIDE = 0, 0
_PROMOTE_256 = 3  # a miss fetches 256 bytes into the second-level cache: the next channels or pixels come soon
_SIGNATURE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p),
    *(ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint64)),
    *(ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint32)),
    *(ctypes.c_int,) * 4,
)


@lru_cache(maxsize=4096)
def encoded(tensor_map: TensorMap, address: int) -> np.void:
    """The kernel argument for a map of the operand that begins at ``address``.

    Raises:
        LaunchFailed: the driver refuses it.
    """
    size, rank = MAPPED[tensor_map.dtype], len(tensor_map.shape)
    room = np.zeros(BYTES + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    status = _driver_function()(
        room.ctypes.data + start,
        _TYPES[tensor_map.dtype],
        rank,
        address + tensor_map.offset * size,
        (ctypes.c_uint64 * rank)(*tensor_map.shape),
        (ctypes.c_uint64 * rank)(*(stride * size for stride in tensor_map.strides)),  # one axis has none
        (ctypes.c_uint32 * rank)(*tensor_map.box),
        (ctypes.c_uint32 * rank)(*tensor_map.element_strides),
        _NO_INTERLEAVE,
        _SWIZZLES[tensor_map.swizzle],
        _PROMOTE_256,
        _ZEROS_OUTSIDE,
    )
    if status:
        raise LaunchFailed(f"the driver refuses (CUresult {status}) at address {address:#x} the {tensor_map}")
    return np.frombuffer(room[start : start + BYTES].tobytes(), np.dtype((np.void, BYTES)))[0]  # type: ignore[no-any-return]


@cache
def _driver_function() -> Callable[..., Any]:
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        return _SIGNATURE(("cuTensorMapEncodeTiled", library))
    except (OSError, AttributeError) as error:
        raise LaunchFailed(f"the driver has no tensor maps, which came with CUDA 12.0: update it. {error}") from error
