"""Loads, stores, atomics, asynchronous copies and fences."""

from __future__ import annotations

from typing import Any

from .atomics import supported
from .codegen_base import DTYPE_NAMES, Handler, Modifiers, Writer, items_of, storage_type, value_type
from .ir import TYPE_SIZES, Address, Immediate, Instruction, Operand, Register, Symbol
from .numeric import UNSIGNED, u32, u64

_SPACES = ("global", "shared", "local", "param", "const", "shared::cta", "param::entry")
_DEVICE_SCOPES = ("gpu", "sys", "cluster")
_SCOPES = ("cta", *_DEVICE_SCOPES)
_CACHE_HINTS = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "unified", "L2::64B", "L2::128B", "L2::256B"}
_CACHE_HINTS |= {
    f"{level}::{policy}"
    for level in ("L1", "L2")
    for policy in ("evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate")
}
_UNITS = {"global": "m.memory", "const": "m.memory", "shared": "m.shared", "local": "m.local", "generic": "m.generic"}


def _space(mods: Modifiers) -> str:
    return (mods.choice(*_SPACES) or "generic").split("::")[0]


def address_of(w: Writer, operand: Operand) -> tuple[str, int]:
    """Expression of the base address and the constant offset, which a 32-bit address takes in modulo 2^32."""
    if not isinstance(operand, Address):
        raise w.unsupported(f"address {operand}")
    if operand.base is None:
        return w.constant(operand.offset, u64), 0
    if isinstance(operand.base, Symbol):
        return f"m.address_of({operand.base.name!r})", operand.offset
    dtype = w.program.register_types[operand.base.name]
    if dtype is u32:
        return f"({w.read(operand.base, u32)} + {w.constant(operand.offset % (1 << 32), u32)})", 0
    return w.read(operand.base, dtype), operand.offset


def _order(mods: Modifiers) -> tuple[str, bool]:
    """The memory order of an access, and whether it is visible outside the block."""
    order = mods.choice("relaxed", "acquire", "release", "acq_rel", "volatile") or "weak"
    scope = mods.choice(*_SCOPES)
    return order, order == "volatile" or (order != "weak" and scope in _DEVICE_SCOPES)


def _vector(w: Writer, mods: Modifiers) -> tuple[str, int, int]:
    count = {"v2": 2, "v4": 4, "v8": 8, None: 1}[mods.choice("v2", "v4", "v8")]
    kind = mods.type()
    if kind == "pred" or "x2" in kind or count * TYPE_SIZES[kind] > 32:
        raise w.unsupported()
    return kind, count, TYPE_SIZES[kind]


def _load(w: Writer, i: Instruction, mods: Modifiers) -> None:
    space = _space(mods)
    order, strong = _order(mods)
    mods.ignore(_CACHE_HINTS)
    kind, count, size = _vector(w, mods)
    address, dtype = i.operands[1], value_type(kind)
    assert isinstance(address, Address)
    if space == "param":
        if isinstance(address.base, Symbol):
            name, start, shown = address.base.name, address.offset, DTYPE_NAMES[dtype]
            if not 0 <= start <= w.parameter_size(name) - size * count:
                raise w.unsupported("outside of the parameter")
            w.write_all(i.operands[0], lambda j: f"m.parameter({name!r}, {start + j * size}, {shown})", dtype)
            return
        space = "const"  # a struct indexed at run time: its bytes are an allocation
    base, offset = address_of(w, address)
    lanes, site = w.lanes(), w.site(f"ld.{space}")
    if strong and space in ("global", "generic"):
        call = f"load_strong({site}, {base}, {lanes}, {offset}, {size}, {count}, {order == 'acquire'})"
    else:
        call = f"load({site}, {base}, {lanes}, {offset}, {size}, {count})"
    w.emit(f"loaded = {_UNITS[space]}.{call}")
    view = "" if dtype is UNSIGNED[size] else f".view({DTYPE_NAMES[dtype]})"
    w.write_all(i.operands[0], lambda j: f"loaded[{j}]{view}", dtype)
    w.emit("loaded = None")


def _store(w: Writer, i: Instruction, mods: Modifiers) -> None:
    space = _space(mods)
    order, strong = _order(mods)
    mods.ignore(_CACHE_HINTS)
    kind, _, size = _vector(w, mods)
    if space in ("param", "const"):  # an argument of a call
        raise w.unsupported("device functions that were not inlined are not implemented")
    base, offset = address_of(w, i.operands[0])
    values = "".join(f"{w.read(x, UNSIGNED[size])}, " for x in items_of(i.operands[1]))
    lanes, site = w.lanes(), w.site(f"st.{space}")
    arguments = f"{site}, {base}, {lanes}, {offset}, {size}, ({values})"
    if strong and space in ("global", "generic"):
        w.emit(f"{_UNITS[space]}.store_strong({arguments}, {order == 'release'})")
    else:
        w.emit(f"{_UNITS[space]}.store({arguments})")


def _atomic(w: Writer, i: Instruction, mods: Modifiers) -> None:
    space = _space(mods)
    order, _ = _order(mods)
    mods.choice(*_SCOPES)
    mods.ignore(("noftz",))
    operation = mods.need("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
    kind = mods.type()
    if space not in ("global", "shared", "generic") or not supported(operation, kind):
        raise w.unsupported()
    returns = i.opcode == "atom"
    size = TYPE_SIZES[kind]
    dtype = UNSIGNED[size]
    base, offset = address_of(w, i.operands[returns])
    values = ", ".join(w.read(x, dtype) for x in i.operands[returns + 1 :])
    lanes, site = w.lanes(), w.site("atomic")
    if order in ("release", "acq_rel"):
        w.emit(f"m.fence({lanes})")
    call = f"m.atomic({space!r}, {site}, {base}, {lanes}, {offset}, {size}, {operation!r}, {kind!r}, {values})"
    w.emit(f"loaded = {call}")
    if order in ("acquire", "acq_rel"):
        w.emit(f"m.fence({lanes})")
    if returns:
        stored: Any = storage_type(kind)
        view = "" if stored is dtype else f".view({DTYPE_NAMES[stored]})"
        w.write(i.operands[0], f"loaded{view}", stored)
    w.emit("loaded = None")


def _copy(w: Writer, i: Instruction, mods: Modifiers) -> None:
    mods.need("async")
    if mods.flag("commit_group"):
        w.emit(f"m.copies.commit({w.lanes()})")
    elif mods.flag("wait_group"):
        count = i.operands[0]
        if not isinstance(count, Immediate):
            raise w.unsupported()
        w.emit(f"m.copies.wait({w.lanes()}, {count.value})")
    elif mods.flag("wait_all"):
        w.emit(f"m.copies.wait({w.lanes()}, None)")
    else:
        _issue_copy(w, i, mods)


def _issue_copy(w: Writer, i: Instruction, mods: Modifiers) -> None:
    cache = mods.need("ca", "cg")
    mods.need("shared", "shared::cta")
    mods.need("global")
    mods.ignore(("L2::64B", "L2::128B", "L2::256B"))
    size = i.operands[2]
    if not isinstance(size, Immediate) or size.value not in ((16,) if cache == "cg" else (4, 8, 16)):
        raise w.unsupported("copy size not implemented")
    target, target_offset = address_of(w, i.operands[0])
    source, source_offset = address_of(w, i.operands[1])
    wanted = w.constant(size.value, u32)
    if len(i.operands) == 4:
        last = i.operands[3]
        if isinstance(last, Register) and w.program.register_types[last.name] is storage_type("pred"):
            wanted = f"select({w.read(last, storage_type('pred'))}, u32(0), {wanted})"  # ignore-src
        else:
            wanted = w.read(last, u32)
    elif len(i.operands) != 3:
        raise w.unsupported()
    lanes, read, written = w.lanes(), w.site("cp.async.global"), w.site("cp.async.shared")
    w.emit(
        f"m.copies.issue({read}, {written}, {target}, {target_offset}, {source}, {source_offset},"
        f" {size.value}, {wanted}, {lanes})"
    )


def _fence(w: Writer, i: Instruction, mods: Modifiers) -> None:
    scope = mods.need("cta", "gl", *_DEVICE_SCOPES)
    mods.choice("sc", "acq_rel", "acquire", "release")
    if scope != "cta":
        w.emit(f"m.fence({w.lanes()})")


def _nothing(w: Writer, i: Instruction, mods: Modifiers) -> None:
    """Hints without a result: prefetch, nanosleep, performance events."""
    mods.left.clear()


HANDLERS: dict[str, Handler] = {
    "ld": _load,
    "ldu": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
    "cp": _copy,
    **dict.fromkeys(("membar", "fence"), _fence),
    **dict.fromkeys(("prefetch", "prefetchu", "nanosleep", "pmevent"), _nothing),
}
