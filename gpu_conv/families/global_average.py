"""The mean over all pixels: the host half of ``kernels/global_average.cu``. No convolution, so no row of the table."""

from __future__ import annotations

from math import prod

from ..launch import CTYPES, Launch, Target, pack, struct
from ..problem import ITEMSIZE, Tensor

PARAMS = struct("GlobalAverageParams", [("pixels", "int32"), ("channels", "int32"), ("parts", "int32")])
THREADS = 256
RUN = 2  # vectors that lie side by side at least: a sector of 32 bytes
BLOCKS = 4  # per multiprocessor, before a thread takes many pixels
_DTYPES = ("float32", "float16", "bfloat16", "float64")


def refuses(x: Tensor, y: Tensor) -> str | None:
    """Why one launch cannot average x ``[n, *spatial, c]`` to y ``[n, 1, ..., c]``, or None."""
    if x.dtype not in _DTYPES or y.dtype != x.dtype:
        return f"averages {', '.join(_DTYPES)} and keeps the type, got {x.dtype} -> {y.dtype}"
    if len(x.shape) < 3 or not x.size:
        return f"averages over pixels, got shape {x.shape}"
    if not all(t.is_dense(tuple(range(len(t.shape)))) and t.align >= ITEMSIZE[t.dtype] for t in (x, y)):
        return f"needs dense aligned arrays, got strides {x.strides} and {y.strides}"
    if max(prod(x.shape[1:-1]), x.size // prod(x.shape[1:-1])) >= 2**30:
        return "counts pixels, and channels of all images, in 30 bits"
    return None


def plan(x: Tensor, y: Tensor, target: Target) -> Launch:
    """The launch: many channels per block make long runs, few leave threads for more pixels and make more blocks."""
    channels, pixels = x.shape[-1], prod(x.shape[1:-1])
    vector = 16 // ITEMSIZE[x.dtype]
    while channels % vector or x.align < vector * ITEMSIZE[x.dtype]:
        vector //= 2
    vectors = 32
    while vectors * vector >= 2 * channels and vectors > 1:
        vectors //= 2
    parts = -(-channels // (vectors * vector))
    while x.shape[0] * parts < BLOCKS * target.multiprocessors and THREADS // vectors < pixels and vectors > RUN:
        vectors //= 2
        parts = -(-channels // (vectors * vector))
    return Launch(
        source="global_average.cu",
        kernel="global_average",
        template=(CTYPES[x.dtype], vector, vectors),
        grid=(x.shape[0] * parts, 1, 1),
        block=(THREADS, 1, 1),
        params=pack(PARAMS, pixels=pixels, channels=channels, parts=parts),
    )
