"""Tensor maps: a stand-in for ``cuTensorMapEncodeTiled``, and the boxes that they describe.

The driver's 128 bytes are opaque to a kernel, so any bytes that the emulator understands will do.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..launch import MAPPED, TensorMap
from .lanes import Indices

SIZE = 128
ALIGNMENT = 64
_FORMAT = "<8sQBBB5Q4Q5H5B"
_MAGIC = b"TMA tile"


@dataclass(frozen=True)
class Tiles:
    """A decoded map: sizes in elements, strides in bytes, the innermost axis first."""

    address: int
    element: int
    swizzle: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    fetched: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.fetched[0] * self.element

    @property
    def box_bytes(self) -> int:
        return prod(self.fetched) * self.element

    def rows(self, corner: tuple[int, ...]) -> tuple[Indices, npt.NDArray[np.bool_], int, int]:
        """Where the innermost rows of a box lie, whether they do, and the bytes of each that lie inside.

        Returns (offset of the first inside byte from the first element, inside, first, last-plus-one byte).
        """
        offset = np.zeros(1, np.int64)
        inside = np.ones(1, np.bool_)
        for axis in range(1, len(self.shape)):
            index = corner[axis] + np.arange(self.fetched[axis]) * self.steps[axis]
            legal = (index >= 0) & (index < self.shape[axis])
            offset = (offset + (index * self.strides[axis - 1])[:, None]).ravel()
            inside = (inside & legal[:, None]).ravel()
        low = min(max(0, -corner[0]), self.fetched[0])
        high = max(low, min(self.fetched[0], self.shape[0] - corner[0]))
        return offset + (corner[0] + low) * self.element, inside, low * self.element, high * self.element


def encode(tensor_map: TensorMap, pointer: int) -> bytes:
    """The 128 bytes of a map of memory at ``pointer``, the operand's address."""
    element = MAPPED[tensor_map.dtype]
    address = pointer + tensor_map.offset * element
    if address % 16:
        raise ValueError(f"a tensor map needs an address that is a multiple of 16; {tensor_map.operand} is misaligned")
    rank = len(tensor_map.shape)

    def padded(values: tuple[int, ...], size: int) -> list[int]:
        return [*values, *[1] * (size - len(values))]

    strides = tuple(s * element for s in tensor_map.strides)
    data = struct.pack(
        _FORMAT, _MAGIC, address, element, rank, tensor_map.swizzle, *padded(tensor_map.shape, 5),
        *padded(strides, 4), *padded(tensor_map.box, 5), *padded(tensor_map.element_strides, 5),
    )  # fmt: skip
    return data.ljust(SIZE, b"\0")


def decode(data: bytes) -> Tiles | None:
    """What :func:`encode` made; ``None`` if it did not make this."""
    fields: tuple[Any, ...] = struct.unpack_from(_FORMAT, data)
    if fields[0] != _MAGIC:
        return None
    address, element, rank, swizzle = fields[1:5]
    shape, strides, box, steps = fields[5:10], fields[10:14], fields[14:19], fields[19:24]
    fetched = tuple(-(-n // s) for n, s in zip(box, steps, strict=True))
    return Tiles(address, element, swizzle, shape[:rank], strides[: rank - 1], fetched[:rank], steps[:rank])


def swizzled(address: Indices, swizzle: int) -> Indices:
    """Where the 16-byte piece of each address lies in a pattern of 32, 64 or 128 bytes (0: none)."""
    mask = {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]
    return address ^ ((address >> 7 & mask) << 4) if mask else address
