"""Matrix descriptors of ``wgmma``: 64 bits that say where a matrix lies in shared memory, and in which layout.

All is counted in pieces of 16 bytes, T elements. A tile is 32 bytes of k times R rows (R of M or of N). With W = 1, 2,
4, 8 for a swizzle of none, 32, 64, 128 bytes, piece ``c`` of row ``r`` (K-major), or piece ``c`` of R at a depth of
``k`` (MN-major), lies at

==========  =====================================  ==========================================
K-major     ``r % 8 * W + r // 8 * SBO + c``       none: ``r % 8 + r // 8 * SBO + c * LBO``
MN-major    ``c % W + c // W * LBO + k % 8 * W + k // 8 * SBO``  none: ``c * SBO + k % 8 + k // 8 * LBO``
==========  =====================================  ==========================================

from the start address; then address bits 4 to 6 are exchanged as :func:`tensor_map.swizzled` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .lanes import Indices

_SWIZZLES = (0, 128, 64, 32)
PIECE = 16  # bytes
DEPTH = 2  # pieces of k in every product


@dataclass(frozen=True)
class Descriptor:
    """A decoded descriptor; addresses and offsets in bytes."""

    start: int
    leading: int
    stride: int
    base: int
    swizzle: int
    rest: int


def decode(bits: int) -> Descriptor:
    """The fields of a descriptor; ``rest`` are the bits that belong to none."""
    start, leading, stride = ((bits >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    known = 0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 7 << 49 | 3 << 62
    return Descriptor(start, leading, stride, bits >> 49 & 7, _SWIZZLES[bits >> 62], bits & ~known)


@lru_cache(256)
def offsets(rows: int, swizzle: int, leading: int, stride: int, across: bool, depth: int) -> Indices:
    """Bytes from the start address to each piece, before the swizzle.

    Shape (rows, 2) for a K-major matrix; (depth, rows // 8) for an MN-major one (``across``) of 16-bit elements.
    """
    width = max(1, swizzle // PIECE)
    if not across:
        row, piece = np.arange(rows)[:, None], np.arange(DEPTH)
        return np.asarray(row % 8 * width * PIECE + row // 8 * stride + piece * (PIECE if swizzle else leading))
    k, piece = np.arange(depth)[:, None], np.arange(rows // 8)
    if not swizzle:
        return np.asarray(piece * stride + k % 8 * PIECE + k // 8 * leading)
    inside = piece % width * PIECE + piece // width * leading
    return np.asarray(inside + k % 8 * width * PIECE + k // 8 * stride)
