"""Memory of one plan: results live in buffers that are taken when a value is born and given back when it dies."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

from .ir import Array

Pads = tuple[tuple[int, int], ...]  # one (lo, hi) per axis
Key = tuple[tuple[int, ...], Pads, Any]


class Buffer:
    """An array, the zeros around it if padded, and nothing else.

    Attributes:
        whole: with the border of zeros.
        array: without it.
    """

    def __init__(self, xp: ModuleType, key: Key) -> None:
        shape, pads, dtype = key
        self.key = key
        sizes = tuple(n + lo + hi for n, (lo, hi) in zip(shape, pads, strict=True))
        self.whole: Array = (xp.zeros if any(map(any, pads)) else xp.empty)(sizes, dtype)
        self.array: Array = self.whole[tuple(slice(lo, lo + n) for n, (lo, _) in zip(shape, pads, strict=True))]


class Pool:
    """Buffers by exact geometry: a border of zeros is never written, so it stays zero however often it is reused."""

    def __init__(self) -> None:
        self._free: dict[Key, list[Buffer]] = {}
        self._users: Counter[Buffer] = Counter()

    def take(self, xp: ModuleType, shape: tuple[int, ...], pads: Pads, dtype: Any) -> Buffer:
        """A buffer that nobody uses."""
        key = shape, pads, dtype
        free = self._free.get(key)
        return free.pop() if free else Buffer(xp, key)

    def hold(self, buffers: frozenset[Buffer]) -> None:
        """One more value may lie in these buffers."""
        self._users.update(buffers)

    def drop(self, buffers: frozenset[Buffer]) -> None:
        """One such value died; a buffer without values is free."""
        for buffer in buffers:
            self._users[buffer] -= 1
            if not self._users[buffer]:
                self._free.setdefault(buffer.key, []).append(buffer)
