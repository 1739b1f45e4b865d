"""Atomic operations: lanes that meet at one location take turns, in lane order or in a random one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .lanes import Active, Empty, Indices, Lanes, Value, compact, expand, spread
from .memory import shift
from .numeric import (
    bfloat_to_float,
    f16,
    f32,
    f64,
    float_to_bfloat,
    float_to_half,
    half_to_float,
    i32,
    i64,
    map_pairs,
    select,
    u16,
    u32,
    u64,
)

if TYPE_CHECKING:
    from .chunk import Chunk
    from .global_memory import GlobalMemory
    from .shared import SharedMemory
    from .site import Site

_TYPES: dict[str, Any] = {"u32": u32, "s32": i32, "b32": u32, "u64": u64, "s64": i64, "b64": u64, "b16": u16}
_TYPES |= {"f32": f32, "f64": f64, "f16": f16}
_FLOATS = {"add": np.add, "min": np.fmin, "max": np.fmax}
_INTEGERS: dict[str, Callable[..., Value]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: select(old == expected, new, old),
    "inc": lambda old, top: select(old >= top, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, top: select((old == 0) | (old > top), top, old - old.dtype.type(1)),
}


def supported(operation: str, kind: str) -> bool:
    """Does this pair of operation and PTX type exist here?"""
    if kind in ("f16", "f16x2", "bf16", "bf16x2", "f32", "f64"):
        return operation in (_FLOATS if kind not in ("f32", "f64") else ("add",))
    return kind in _TYPES and operation in _INTEGERS and (kind != "b16" or operation == "cas")


def _combine(operation: str, kind: str, old: Value, values: list[Value]) -> Value:
    """New contents, as unsigned words, of locations that hold ``old``."""
    if kind in ("f16x2", "bf16x2", "bf16"):
        decode, encode = (half_to_float, float_to_half) if kind == "f16x2" else (bfloat_to_float, float_to_bfloat)
        if kind == "bf16":
            return encode(_FLOATS[operation](decode(old), decode(values[0])))
        return map_pairs(_FLOATS[operation], decode, encode, old, *values)
    table = _FLOATS if kind[0] == "f" else _INTEGERS
    dtype = _TYPES[kind]
    result = table[operation](old.view(dtype), *(v.view(dtype) for v in values))
    return result.view(old.dtype)


def _take_turns(
    words: npt.NDArray[Any], rows: Indices, turns: Indices, operation: str, kind: str, values: list[Value]
) -> npt.NDArray[Any]:
    """Apply the operation lane by lane; returns what each lane found."""
    found = np.empty(len(rows), words.dtype)
    sorted_lanes = turns[np.argsort(rows[turns], kind="stable")]
    ordered = rows[sorted_lanes]
    start = np.r_[True, ordered[1:] != ordered[:-1]]
    turn = np.arange(len(rows)) - np.maximum.accumulate(np.where(start, np.arange(len(rows)), 0))
    for now in range(int(turn.max()) + 1):
        lanes = sorted_lanes[turn == now]
        found[lanes] = words[rows[lanes]]
        words[rows[lanes]] = _combine(operation, kind, found[lanes], [v[lanes] for v in values])
    return found


class Atomics:
    """``atom`` and ``red`` on global and shared memory."""

    def __init__(self, chunk: Chunk, memory: GlobalMemory, shared: SharedMemory) -> None:
        self.chunk = chunk
        self.memory = memory
        self.shared = shared

    def _apply(
        self, words: npt.NDArray[Any], rows: Indices, turns: Indices, lanes: Lanes, operation: str, kind: str,
        values: tuple[Value, ...],
    ) -> npt.NDArray[Any]:  # fmt: skip
        operands = [spread(compact(lanes, v), len(rows)) for v in values]
        return _take_turns(words, rows, turns, operation, kind, operands)

    def on_global(
        self, site: Site, address: Value, lanes: Active, immediate: int, size: int, operation: str, kind: str,
        *values: Value,
    ) -> Value:  # fmt: skip
        """Returns the old contents, as unsigned words."""
        out = np.zeros(self.chunk.lane_count, f"u{size}")
        if isinstance(lanes, Empty):
            return out[0]
        for allocation, rows, part, turns in self.memory.atomic_rows(site, address, lanes, immediate, size):
            found = self._apply(allocation.words[size], rows, turns, part, operation, kind, values)
            out |= expand(part, found)
        return out

    def on_shared(
        self, site: Site, address: Value, lanes: Active, immediate: int, size: int, operation: str, kind: str,
        *values: Value,
    ) -> Value:  # fmt: skip
        """Returns the old contents, as unsigned words."""
        if isinstance(lanes, Empty):
            return np.dtype(f"u{size}").type(0)
        shared = self.shared
        index = shared.atomic_index(site, address, lanes, immediate, size)
        random = self.chunk.random
        turns = np.arange(len(index)) if random is None else random.permutation(len(index))
        found = self._apply(shared.words[size], index >> shift(size), turns, lanes, operation, kind, values)
        return expand(lanes, found)
