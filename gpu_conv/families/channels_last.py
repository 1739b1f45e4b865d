"""Planes to channels last: the host half of ``kernels/channels_last.cu``. No convolution, so no row of the table."""

from __future__ import annotations

from math import prod

from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ITEMSIZE, Tensor

PARAMS = struct("ChannelsLastParams", [("total", "int32"), ("pixels", "int32")])
THREADS = 256
CHANNELS = 4  # up to which a thread holds a pixel of every plane
EACH = 4  # pixels per thread: 48 bytes in flight for a float32 picture
_DTYPES = ("float32", "float16", "bfloat16")  # float32 holds every value of theirs


def refuses(x: Tensor, y: Tensor) -> str | None:
    """Why one launch cannot move x ``[n, c, *spatial]`` to y ``[n, *spatial, c]``, or None."""
    if x.dtype not in _DTYPES or y.dtype not in _DTYPES:
        return f"moves {', '.join(_DTYPES)}, got {x.dtype} -> {y.dtype}"
    if len(x.shape) < 3 or not 1 <= x.shape[1] <= CHANNELS or not x.size:
        return f"moves 1 to {CHANNELS} planes, got shape {x.shape}"
    if not all(t.is_dense(tuple(range(len(t.shape)))) for t in (x, y)):
        return f"needs dense arrays, got strides {x.strides} and {y.strides}"
    if x.align < ITEMSIZE[x.dtype] or y.align < 16:
        return f"needs a result aligned to 16 bytes, got {y.align}, and elements aligned to their size"
    if x.size // x.shape[1] >= 2**30:
        return "counts the pixels of all images in 30 bits"
    return None


def plan(x: Tensor, y: Tensor, target: Target) -> Launch:
    """The launch; a few blocks per multiprocessor before a thread takes several pixels."""
    pixels = prod(x.shape[2:])
    total = x.shape[0] * pixels
    each = EACH if total >= 4 * target.multiprocessors * EACH * THREADS else 1
    return Launch(
        source="channels_last.cu",
        kernel="channels_last",
        template=(CTYPES[x.dtype], CTYPES[y.dtype], x.shape[1], each),
        grid=(-(-total // (each * THREADS)), 1, 1),
        block=(THREADS, 1, 1),
        params=pack(PARAMS, total=total, pixels=pixels),
    )
