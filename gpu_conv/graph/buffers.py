"""Memory of one plan: where every result that outlives its step lies, in all runs but the one that is recorded.

While a plan is recorded, a value has memory of its own, and when it was needed is written down. Then all are laid into
one arena: the largest first, each at the lowest place that no value needed at the same time has taken.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from .ir import Array
from .ops.registry import Call

Pads = tuple[tuple[int, int], ...]  # one (lo, hi) per axis
Key = tuple[tuple[int, ...], Pads, Any]

LINE = 256  # bytes: what CuPy's allocator aligns to


class Buffer:
    """Memory of one value.

    Attributes:
        whole: with the border of zeros, if padded.
        array: without it.
        nbytes: of ``whole``.
        call: the step that writes here.
        born, died: when it was needed, in values made before.
    """

    def __init__(self, xp: ModuleType, key: Key) -> None:
        self.xp, self.key = xp, key
        shape, pads, dtype = key
        sizes = tuple(n + lo + hi for n, (lo, hi) in zip(shape, pads, strict=True))
        self.padded = any(map(any, pads))
        self.whole: Array = (xp.zeros if self.padded else xp.empty)(sizes, dtype)
        self.array: Array = self.whole[tuple(slice(lo, lo + n) for n, (lo, _) in zip(shape, pads, strict=True))]
        self.nbytes: int = prod(sizes) * np.dtype(dtype).itemsize
        self.call: Call | None = None
        self.born = 0
        self.died = 1 << 62


class Pool:
    """The buffers of a plan.

    A padded buffer is reused for the same geometry only, because its border of zeros is never written; it is no part of
    the arena.

    Attributes:
        nbytes: all memory of the plan.
        live: the most that values needed at one time, borders included: no plan can do with less.
    """

    def __init__(self) -> None:
        self.nbytes = self.live = 0
        self._now = self._clock = 0
        self._free: dict[Key, list[Buffer]] = {}
        self._plain: list[Buffer] = []
        self._users: Counter[Buffer] = Counter()

    def take(self, xp: ModuleType, shape: tuple[int, ...], pads: Pads, dtype: Any) -> Buffer:
        """A buffer that nobody uses."""
        key = shape, pads, dtype
        free = self._free.get(key)
        if free:
            buffer = free.pop()
        else:
            buffer = Buffer(xp, key)
            buffer.born = self._clock
            if buffer.padded:
                self.nbytes += buffer.nbytes
            else:
                self._plain.append(buffer)
        self._clock += 1
        self._now += buffer.nbytes
        self.live = max(self.live, self._now)
        return buffer

    def hold(self, buffers: frozenset[Buffer]) -> None:
        """One more value may lie in these buffers."""
        self._users.update(buffers)

    def drop(self, buffers: frozenset[Buffer]) -> None:
        """One such value died; a buffer without values is free."""
        for buffer in buffers:
            self._users[buffer] -= 1
            if not self._users[buffer]:
                self._now -= buffer.nbytes
                if buffer.padded:
                    self._free.setdefault(buffer.key, []).append(buffer)
                else:
                    buffer.died = self._clock
                    buffer.whole = buffer.array = None

    def arrange(self) -> None:
        """Recording is over: lay the buffers into an arena, and let the steps write there."""
        for xp in {buffer.xp for buffer in self._plain}:
            places, size = layout([b for b in self._plain if b.xp is xp])
            arena = xp.empty((size,), np.uint8)
            self.nbytes += size
            for buffer, offset in places:
                if buffer.call is not None:
                    shape, _, dtype = buffer.key
                    buffer.call.out = arena[offset : offset + buffer.nbytes].view(dtype).reshape(shape)


def layout(buffers: list[Buffer]) -> tuple[list[tuple[Buffer, int]], int]:
    """An offset for each buffer such that no two needed at the same time overlap, and the size of it all."""
    placed: list[tuple[Buffer, int]] = []
    for buffer in sorted(buffers, key=lambda b: -b.nbytes):
        offset = 0
        for other, start in sorted((p for p in placed if _meet(p[0], buffer)), key=lambda p: p[1]):
            if start - offset >= buffer.nbytes:
                break
            offset = max(offset, -(-(start + other.nbytes) // LINE) * LINE)
        placed.append((buffer, offset))
    return placed, max((offset + buffer.nbytes for buffer, offset in placed), default=0)


def _meet(a: Buffer, b: Buffer) -> bool:
    return a.born < b.died and b.born < a.died
