"""Warp-synchronous instructions and the tensor core."""

from __future__ import annotations

import re

import numpy as np

from .codegen_base import Handler, Modifiers, Writer, items_of, value_type
from .codegen_memory import address_of
from .ir import Instruction, Pair
from .numeric import f32, i32, u32
from .tensor_core import MMA_SHAPES


def _shuffle(w: Writer, i: Instruction, mods: Modifiers) -> None:
    mods.need("sync")
    mode = mods.need("up", "down", "bfly", "idx")
    mods.need("b32")
    target = i.operands[0]
    value, lane, control = (w.read(x, u32) for x in i.operands[1:4])
    w.emit(f"loaded = m.warp.shuffle({w.site('shuffle')}, {mode!r}, {value}, {lane}, {control}, lanes)")
    if isinstance(target, Pair):
        w.write(target.first, "loaded[0]", u32)
        w.write(target.second, "loaded[1]", np.bool_)
    else:
        w.write(target, "loaded[0]", u32)
    w.emit("loaded = None")


def _vote(w: Writer, i: Instruction, mods: Modifiers) -> None:
    mods.need("sync")
    mode = mods.need("all", "any", "uni", "ballot")
    mods.need("pred", "b32")
    predicate, members = w.read(i.operands[1], np.bool_), w.read(i.operands[2], u32)
    w.write(
        i.operands[0], f"m.warp.vote({mode!r}, {predicate}, lanes, {members})", u32 if mode == "ballot" else np.bool_
    )


def _match(w: Writer, i: Instruction, mods: Modifiers) -> None:
    mode = mods.need("any", "all")
    mods.need("sync")
    dtype = value_type(mods.need("b32", "b64"))
    value, members = w.read(i.operands[1], dtype), w.read(i.operands[2], u32)
    w.emit(f"loaded = m.warp.match({mode!r}, {value}, lanes, {members})")
    _write_pair(w, i)


def _elect(w: Writer, i: Instruction, mods: Modifiers) -> None:
    mods.need("sync")
    w.emit(f"loaded = m.warp.elect(lanes, {w.read(i.operands[1], u32)})")
    _write_pair(w, i)


def _write_pair(w: Writer, i: Instruction) -> None:
    target = i.operands[0]
    first = target.first if isinstance(target, Pair) else target
    w.write(first, "loaded[0]", u32)
    if isinstance(target, Pair):
        w.write(target.second, "loaded[1]", np.bool_)
    w.emit("loaded = None")


def _reduce(w: Writer, i: Instruction, mods: Modifiers) -> None:
    mods.need("sync")
    operation = mods.need("add", "min", "max", "and", "or", "xor")
    dtype = value_type(mods.need("u32", "s32", "b32"))
    value, members = w.read(i.operands[1], dtype), w.read(i.operands[2], u32)
    w.write(i.operands[0], f"m.warp.reduce({operation!r}, {value}, lanes, {members})", dtype)


def _active_mask(w: Writer, i: Instruction, mods: Modifiers) -> None:
    mods.need("b32")
    w.write(i.operands[0], f"m.warp.active_mask({w.lanes()})", u32)


def _warp_barrier(w: Writer, i: Instruction, mods: Modifiers) -> None:
    mods.need("warp")
    mods.need("sync")
    w.emit("m.warp_barrier(lanes)")


def _load_matrix(w: Writer, i: Instruction, mods: Modifiers) -> None:
    for modifier in ("sync", "aligned", "m8n8", "b16"):
        mods.need(modifier)
    mods.need("shared", "shared::cta")
    count = int(mods.need("x1", "x2", "x4")[1])
    transposed = mods.flag("trans")
    address, offset = address_of(w, i.operands[1])
    if len(items_of(i.operands[0])) != count:
        raise w.unsupported("number of destinations")
    w.emit(f"loaded = m.tensor.load_matrix({w.site('ldmatrix')}, {address}, {offset}, {count}, {transposed}, lanes)")
    w.write_all(i.operands[0], lambda j: f"loaded[{j}]", u32)
    w.emit("loaded = None")


def _mma(w: Writer, i: Instruction, mods: Modifiers) -> None:
    for modifier in ("sync", "aligned", "row", "col"):
        mods.need(modifier)
    shape = next((m for m in mods.left if re.fullmatch(r"m\d+n\d+k\d+", m)), "")
    mods.flag(shape)
    # The accumulator may be f32 twice, and A and B may share their type: take all of them in order.
    d, a, b, c = _four_types(w, mods)
    integers = a in ("s8", "u8")
    accumulator = "s32" if integers else "f32"
    same = (b in ("s8", "u8")) if integers else a == b
    if (shape, a) not in MMA_SHAPES or not same or d != accumulator or c != accumulator:
        raise w.unsupported()
    depth = MMA_SHAPES[shape, a]
    fragments = []
    for operand, dtype in zip(i.operands[1:4], (u32, u32, i32 if integers else f32), strict=True):
        fragments.append("(" + "".join(f"{w.read(x, dtype)}, " for x in items_of(operand)) + ")")
    w.emit(f"loaded = m.tensor.mma({w.site('mma')}, {(a, b)!r}, {depth}, {', '.join(fragments)}, lanes)")
    w.write_all(i.operands[0], lambda j: f"loaded[{j}]", i32 if integers else f32)
    w.emit("loaded = None")


def _four_types(w: Writer, mods: Modifiers) -> tuple[str, str, str, str]:
    types = mods.types()
    if len(types) != 4:
        raise w.unsupported()
    return types[0], types[1], types[2], types[3]


HANDLERS: dict[str, Handler] = {
    "shfl": _shuffle,
    "vote": _vote,
    "match": _match,
    "elect": _elect,
    "redux": _reduce,
    "activemask": _active_mask,
    "bar": _warp_barrier,
    "ldmatrix": _load_matrix,
    "mma": _mma,
}
