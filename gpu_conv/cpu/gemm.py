"""How large a matrix product BLAS gets: small ones are multiplied where their operands lie.

OpenBLAS copies both operands of a product into an order of its own first, a quarter to two fifths of the time with as
few columns as a convolution has filters. Up to a million multiply-adds its kernels for AVX-512 do without: the filters
are parted into panels, the pixels into pieces, and ``np.matmul`` runs over them. Measured on a Xeon with AVX-512, one
thread, against the product in one call: 3136 pixels by 192 terms by 64 filters 0.75 of the time, 784 by 384 by 128
0.78, 196 by 768 by 256 0.81, 49 by 320 by 1280 0.74, 12544 by 16 by 96 0.64. OpenBLAS's other kernels pack the filters
for every piece instead: with those for AVX2 1.0 to 1.4 of the time there, and 1.2 to 1.8 on a Zen 5. So OpenBLAS is
asked which it has chosen: an older one does not know a newer processor, and ``OPENBLAS_CORETYPE`` may say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from .scratch import Array
from .views import split

SMALL = 1_000_000  # multiply-adds of a product up to which operands are not packed
STRIP = 64  # filters that a kernel multiplies at once, four vectors: 160 take 1.2 of the time of 64
WIDEST = 192  # filters of a panel, whose pixels are read once
NEAR = 40_000  # weights of a panel that is wider than a strip: 49 pixels by 320 terms take 0.85 of the time with 64
NARROWEST = 32  # below it the vectors of a product are half empty
WEIGHTS = 100_000  # of a panel: with fewer than ten pixels in a piece the filters are read too often
CACHED = 1 << 21  # bytes of weights, about an L2 cache: 49 by 1536 by 512 else takes 1.4 of the time
KERNELS = ("skylakex", "cooperlake", "sapphirerapids")  # OpenBLAS's names for those with AVX-512
THREADS = 2  # of BLAS up to which small products, each on one thread, win: MobileNetV2 9.6 ms, not 11.8 (Zen 5)
FEW = 16  # pixels of a product below which packing is no matter


def panel(terms: int, filters: int, pixels: int) -> int:
    """Filters of a panel: whole strips or else what divides all of them, so that products are small; else all."""
    if pixels < FEW or not unpacked():
        return filters
    strips = (n for n in range(WIDEST, 0, -STRIP) if n == STRIP or terms * n <= NEAR)
    others = range(min(filters, WIDEST), min(filters, NARROWEST) - 1, -1)
    return next((n for n in (*strips, *others) if filters % n == 0 and terms * n <= WEIGHTS), filters)


def piece(terms: int, filters: int, pixels: int) -> int:
    """Pixels of a product with a panel of filters: as many as keep it small, in pieces of about one size; or all."""
    weights = terms * filters
    if weights > WEIGHTS or weights * pixels <= SMALL or not unpacked():
        return pixels
    return -(-pixels // -(-weights * pixels // SMALL))


def products(pixels: Array, weights: Array, goal: Array) -> Iterator[tuple[Array, Array, Array]]:
    """The small products of a large one, many in each call of ``np.matmul``.

    Args:
        pixels: ``(..., pixels, terms)``.
        weights: ``(..., panels, terms, filters)``.
        goal: ``(..., pixels, panels * filters)``.

    Yields:
        Views: pixels ``(..., pieces, 1, piece, terms)``, weights ``(..., 1, panels, terms, filters)``, and where their
        product goes. Weights that do not stay cached from piece to piece come panel by panel.
    """
    axis, (panels, terms, filters) = pixels.ndim - 2, weights.shape[-3:]
    count = pixels.shape[axis]
    rows = piece(terms, filters, count)
    whole = rows == count or weights.nbytes <= CACHED
    for group in [slice(None)] if whole else [slice(p, p + 1) for p in range(panels)]:
        for part, n in evenly(count, rows):
            left, right = (split(view[..., part, :], axis, n) for view in (pixels, goal))
            right = split(right, axis + 2, filters).swapaxes(axis + 1, axis + 2)
            yield left[..., np.newaxis, :, :], weights[..., np.newaxis, group, :, :], right[..., group, :, :]


def evenly(count: int, size: int) -> list[tuple[slice, int]]:
    """An axis cut into pieces: the part that is a multiple of ``size``, and the rest, a piece of its own, if any."""
    even = count - count % size
    return [(slice(0, even), size), (slice(even, count), count - even)][: 1 + (even < count)]


@cache
def unpacked() -> bool:
    """Whether OpenBLAS has chosen kernels that do not pack, and no more threads than they outrun."""
    found = openblas()
    return bool(found) and all(
        library["architecture"].lower() in KERNELS and library["num_threads"] <= THREADS for library in found
    )


def blas() -> str:
    """What multiplies matrices here, with the kernels that it has chosen."""
    found = openblas()
    if not found:
        return str(np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"])
    kernels = ", ".join(sorted({library["architecture"] for library in found}))
    return f"OpenBLAS, kernels for {kernels}, threads: {max(library['num_threads'] for library in found)}"


def openblas() -> list[dict[str, Any]]:
    """The OpenBLAS libraries of this process: ``architecture`` (which kernels), ``num_threads``, ``version``."""
    from threadpoolctl import threadpool_info  # 20 ms, which ``import gpu_conv`` need not take

    return [library for library in threadpool_info() if library["internal_api"] == "openblas"]
