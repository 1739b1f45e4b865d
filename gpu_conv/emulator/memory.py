"""Allocations: views of the caller's arrays in an address space with guard space between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds

from .lanes import Value

if TYPE_CHECKING:
    from .global_shadow import GlobalShadow

Bytes = npt.NDArray[np.uint8]

# Allocation i starts at (FIRST + i) << SHIFT: 64 GiB apart, so no wrong index reaches a neighbour.
SHIFT = 36
FIRST = 0x100
BASE_ALIGNMENT = 256  # of a whole array, as CuPy allocates it; a view keeps its offset from there
VECTOR = 32  # widest access (Blackwell has 256-bit loads)

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Allocation:
    """The bytes that a kernel may touch through one pointer argument: the extent of one array.

    Offsets count from ``base``, which is 32-byte aligned; the legal ones are ``low <= offset < high``.

    Attributes:
        internal: made by the emulator for a variable or a parameter; it is no traffic of the launch.
        pointer: the address of element 0, what the kernel receives.
        written: one byte per byte, 255 where the kernel (or the caller) has written; ``None`` if all of it is.
        order: shadow of the global race check, made at the first access if the kernel may write here.
        sectors_read, sectors_written: which 32-byte sectors were touched.
    """

    def __init__(
        self, index: int, name: str, array: npt.NDArray[Any], *, writable: bool, initialised: bool, internal: bool
    ) -> None:
        self.name = name
        self.array = array
        self.writable = writable
        self.internal = internal
        first, last = byte_bounds(array) if array.size else (array.ctypes.data, array.ctypes.data)
        offset = 0 if internal else first - _owner_address(array)
        self.base = ((FIRST + index) << SHIFT) + offset % BASE_ALIGNMENT // VECTOR * VECTOR
        self.low = offset % VECTOR
        self.high = self.low + last - first
        self.pointer = self.base + self.low + array.ctypes.data - first
        size = -(-max(self.high, 1) // VECTOR) * VECTOR
        self.copy: Bytes | None = None
        start = first - self.low
        if array.size == 0:
            self.bytes: Bytes = np.zeros(size, np.uint8)
        elif start % 8 == 0:  # what NumPy needs to view the bytes as words
            # From an aligned address below the extent to one above it; only the extent itself is ever accessed.
            self.bytes = _window(array, start - array.ctypes.data, size)
        else:
            self.bytes = self.copy = _aligned_zeros(size)
            self.copy[self.low : self.high] = _window(array, first - array.ctypes.data, last - first)
        self.words = {n: self.bytes.view(t) for n, t in _WORDS.items()}
        self._vectors: dict[tuple[int, int], npt.NDArray[Any]] = {}
        self.written = None if initialised else np.zeros(size, np.uint8)
        self.order: GlobalShadow | None = None
        self.sectors_read = np.zeros(size // 32 + 1, np.bool_)
        self.sectors_written = np.zeros(size // 32 + 1, np.bool_)

    @property
    def size(self) -> int:
        return self.high - self.low

    def vectors(self, element: int, count: int) -> npt.NDArray[Any]:
        """The bytes as rows of ``count`` words of ``element`` bytes."""
        key = (element, count)
        if key not in self._vectors:
            self._vectors[key] = self.words[element].reshape(-1, count)
        return self._vectors[key]

    def mark_written(self, rows: npt.NDArray[np.int64], size: int) -> None:
        """Rows of ``size`` bytes have been written."""
        if self.written is not None:
            self.written.reshape(-1, size)[rows] = 255

    def is_unwritten(self, offset: Value, size: int) -> Value:
        """For each access of ``size`` bytes at ``offset``: has any byte of it never been written?"""
        assert self.written is not None
        if size not in _WORDS:
            offset = np.asarray(offset)
            return (self.written.take(offset[..., None] + np.arange(size)) == 0).any(axis=-1)
        return self.written.view(_WORDS[size]).take(offset >> shift(size)) != 2 ** (8 * size) - 1

    def unwritten_elements(self) -> npt.NDArray[np.bool_]:
        """For each element of the array: has any byte of it never been written?"""
        if self.written is None or not self.array.size:
            return np.zeros(self.array.shape, np.bool_)
        array = self.array
        start = self.pointer - self.base
        shape, strides = (*array.shape, array.itemsize), (*array.strides, 1)
        shadow: Bytes = np.ndarray(shape, np.uint8, self.written, start, strides)
        missing: npt.NDArray[np.bool_] = (shadow == 0).any(axis=-1)
        return missing

    def write_back(self) -> None:
        """Copy the result home if the array could not be used in place."""
        if self.copy is not None and self.writable:
            first = byte_bounds(self.array)[0] - self.array.ctypes.data
            _window(self.array, first, self.size)[:] = self.copy[self.low : self.high]

    def describe(self, offset: int, size: int) -> str:
        """Where an access of ``size`` bytes at ``offset`` lies relative to this allocation."""
        offset -= self.low
        name = f"{self.name} ({self.size} bytes)"
        if offset < 0:
            return f"{size} bytes, {-offset} bytes before {name}"
        if offset + size > self.size:
            return f"{size} bytes at {name} + {offset}, ends {offset + size - self.size} bytes past its end"
        return f"{size} bytes at {name} + {offset}"


class AddressSpace:
    """All allocations of a launch."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []

    def add(
        self,
        name: str,
        array: npt.NDArray[Any],
        *,
        writable: bool = True,
        initialised: bool = True,
        internal: bool = False,
    ) -> Allocation:
        """A new allocation; see :class:`Allocation`."""
        allocation = Allocation(
            len(self.allocations), name, array, writable=writable, initialised=initialised, internal=internal
        )
        self.allocations.append(allocation)
        return allocation

    def at(self, address: int) -> Allocation | None:
        """The allocation in whose window an address lies; it may still be out of its bounds."""
        index = (address >> SHIFT) - FIRST
        return self.allocations[index] if 0 <= index < len(self.allocations) else None

    def describe(self, address: int, size: int) -> str:
        """Name the nearest allocation. A negative index falls into the upper half of the window below."""
        index = (address - (FIRST << SHIFT) + (1 << (SHIFT - 1))) >> SHIFT
        if not 0 <= index < len(self.allocations):
            return f"{size} bytes at {address:#x}, in no allocation" + (" (null pointer)" if address < 1 << 20 else "")
        allocation = self.allocations[index]
        return allocation.describe(address - allocation.base, size)


def shift(size: int) -> int:
    """Division by a power of two as a shift, which NumPy does four times faster."""
    return size.bit_length() - 1


def _owner_address(array: npt.NDArray[Any]) -> int:
    """Where the array that owns the memory of a view starts."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return byte_bounds(owner)[0] if owner.size else owner.ctypes.data


def _window(array: npt.NDArray[Any], offset: int, size: int) -> Bytes:
    """``size`` bytes from ``offset`` bytes after element 0, without a copy and without NumPy's bounds."""
    address = array.ctypes.data + offset
    interface = {"data": (address, not array.flags.writeable), "shape": (size,), "typestr": "|u1", "version": 3}
    return np.asarray(_Memory(interface, array))


class _Memory:
    """Raw memory for NumPy; keeps its owner alive."""

    def __init__(self, interface: dict[str, Any], owner: npt.NDArray[Any]) -> None:
        self.__array_interface__ = interface
        self.owner = owner


def _aligned_zeros(size: int) -> Bytes:
    raw = np.zeros(size + VECTOR, np.uint8)
    start = -raw.ctypes.data % VECTOR
    return raw[start : start + size]


def make_aligned(data: Sequence[int] | bytes | int) -> Bytes:
    """New bytes that :class:`Allocation` can use in place."""
    if isinstance(data, int):
        return _aligned_zeros(data)
    out = _aligned_zeros(len(data))
    out[:] = np.frombuffer(bytes(data), np.uint8)
    return out
