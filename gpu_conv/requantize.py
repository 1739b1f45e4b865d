"""From an integer sum to 8 bits: ``y = saturate(round((sum + bias) * scale) + zero_point)``, halves to even.

The sum and the bias are int32, their sum is converted to float32 and multiplied by the float32 scale, with one rounding
each: the arithmetic of onnxruntime, the same on every device. ``kernels/epilogue.cuh`` spells it for the GPU.

The four numbers of an output channel travel in the place of its bias, as one record of 16 bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array

# ``struct Requantization`` of kernels/epilogue.cuh.
RECORD = np.dtype([("bias", "<i4"), ("scale", "<f4"), ("zero_point", "<i4"), ("unused", "<i4")])


def pack(requantize: Any, bias: Array | None, channels: int, dtype: str, xp: Any) -> Array:
    """One record per output channel; int32 ``[channels, 4]`` on CuPy, which has no record types.

    Args:
        requantize: ``(scale, zero_point)``; the scale is a number or an array of one or ``channels`` elements.
        bias: int32 ``[channels]`` or None.
        channels: of the output.
        dtype: of the output, int8 or uint8.
        xp: NumPy or CuPy.
    """
    if not isinstance(requantize, (tuple, list)) or len(requantize) != 2:
        raise TypeError(f"requantize must be a pair (scale, zero_point), got {requantize!r}")
    scale = _per_channel("scale", requantize[0], channels, "f", xp)
    zero_point = _per_channel("zero_point", requantize[1], 1, "iu", xp)
    limits = np.iinfo(dtype)
    if isinstance(scale, np.ndarray) and not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"the scale of requantize must be positive and finite, got {requantize[0]!r}")
    if isinstance(zero_point, np.ndarray) and not ((limits.min <= zero_point) & (zero_point <= limits.max)).all():
        raise ValueError(f"the zero_point of requantize must fit in {dtype}, got {requantize[1]!r}")
    words = xp.empty((channels, 4), np.int32)
    words[:, 0] = 0 if bias is None else bias
    words[:, 1] = xp.asarray(scale.astype(np.float32)).view(np.int32)
    words[:, 2] = xp.asarray(zero_point)
    words[:, 3] = 0
    return words.view(RECORD)[:, 0] if xp is np else words


def _per_channel(name: str, value: Any, channels: int, kinds: str, xp: Any) -> Array:
    on_gpu = xp is not np and hasattr(value, "__cuda_array_interface__")  # its values are not read
    library = xp if on_gpu else np
    array = library.asarray(value)
    if array.dtype.kind not in kinds:
        wanted = "a floating-point number" if kinds == "f" else "an integer"
        raise TypeError(f"the {name} of requantize must be {wanted}, got {value!r}")
    if array.shape not in ((), (1,), (channels,)):
        per_channel = f" or ({channels},), one per output channel" if channels > 1 else ""
        raise ValueError(f"the {name} of requantize must be a scalar{per_channel}, got the shape {tuple(array.shape)}")
    return library.ascontiguousarray(library.broadcast_to(array.reshape(-1), (channels,)))


def default_dtype(requantize: Any, x: str) -> str:
    """The output's type where it is not given: that of the zero point if it has 8 bits, else that of x."""
    zero_point = requantize[1] if isinstance(requantize, (tuple, list)) and len(requantize) == 2 else None
    found = str(getattr(getattr(zero_point, "dtype", None), "name", ""))
    return found if found in ("int8", "uint8") else x


def records(packed: Array) -> Array:
    """What :func:`pack` made, on NumPy, as records ``[channels]``."""
    return packed if packed.dtype == RECORD else packed.view(RECORD)[:, 0]


def apply(sums: Array, records: Array, dtype: str) -> Array:
    """Requantised sums, as int64.

    Args:
        sums: integers without their bias.
        records: of ``RECORD``, with a shape that broadcasts to that of ``sums``.
        dtype: of the output, int8 or uint8.
    """
    totals = (sums + records["bias"]).astype(np.int32).astype(np.float32)
    rounded = np.rint(totals * records["scale"]).astype(np.float64) + records["zero_point"]
    limits = np.iinfo(dtype)
    clipped: Array = np.clip(rounded, limits.min, limits.max).astype(np.int64)
    return clipped
