"""``wgmma``: products, their groups, and the checks of registers in flight."""

from __future__ import annotations

import re

import numpy as np

from .codegen_base import Handler, Modifiers, Writer, items_of
from .hazards import is_move
from .ir import Immediate, Instruction, Operand, Register, Vector
from .numeric import f32, i32, u32, u64
from .product import DEPTHS, Product


def _wgmma(w: Writer, i: Instruction, mods: Modifiers) -> None:
    action = mods.need("fence", "commit_group", "wait_group", "mma_async")
    mods.need("sync")
    mods.need("aligned")
    if action == "mma_async":
        _product(w, i, mods)
    elif action == "wait_group":
        (pending,) = i.operands
        if not isinstance(pending, Immediate):
            raise w.unsupported()
        w.emit(f"m.wgmma.wait(lanes, {pending.value})")
    else:
        w.emit(f"m.wgmma.{action.removesuffix('_group')}(lanes)")


def _constants(w: Writer, operands: tuple[Operand, ...], allowed: tuple[int, ...]) -> list[int]:
    values = [o.value for o in operands if isinstance(o, Immediate)]
    if len(values) != len(operands) or any(v not in allowed for v in values):
        raise w.unsupported(f"constants other than {' and '.join(map(str, allowed))}")
    return values


def _product(w: Writer, i: Instruction, mods: Modifiers) -> None:
    shape = next((m for m in mods.left if re.fullmatch(r"m64n\d+k\d+", m)), "")
    mods.flag(shape)
    types = mods.types()
    columns, depth = (int(n) for n in re.findall(r"\d+", shape)[1:]) if shape else (0, 0)
    if len(types) != 3 or DEPTHS.get(types[1]) != depth or not 8 <= columns <= 256 or columns % 8:
        raise w.unsupported()
    total, a, b = types
    integers = a in ("s8", "u8")
    same = (b in ("s8", "u8")) if integers else a == b
    if not same or total != ("s32" if integers else "f32") or (integers and columns > 32 and columns % 16):
        raise w.unsupported()
    d, left, right, keep, *constants = i.operands
    from_registers = isinstance(left, Vector)
    halves = a in ("f16", "bf16")
    across = (1 if from_registers else 2) if halves else 0
    if len(constants) != (0 if integers else 2 + across):
        raise w.unsupported("number of operands")
    signs = [1, 1] if integers else _constants(w, tuple(constants[:2]), (1, -1))
    majors = [0] * (2 - across) + _constants(w, tuple(constants[2:]), (0, 1))
    if len(items_of(d)) != columns // 2 or (from_registers and len(items_of(left)) != 4):
        raise w.unsupported("number of registers")
    numbers = w.program.numbers
    product = Product(
        columns, (a, b), signs[0] < 0, signs[1] < 0, bool(majors[0]), bool(majors[1]),
        tuple(numbers[r.name] for r in items_of(d) if isinstance(r, Register)),
        tuple(numbers[r.name] for r in items_of(left) if isinstance(r, Register)) if from_registers else (),
        tuple(w.program.hazards.unfenced[id(i)]),
    )  # fmt: skip
    if len(product.results) != columns // 2:
        raise w.unsupported("an accumulator that is no register")
    name = f"product_{len(w.program.namespace)}"
    w.program.namespace[name] = product
    dtype = i32 if integers else f32
    results = ", ".join(w.read(x, dtype) for x in items_of(d))
    first = f"({', '.join(w.read(x, u32) for x in items_of(left))})" if from_registers else w.read(left, u64)
    site = w.site("wgmma")
    w.emit(
        f"loaded = m.wgmma.multiply({site}, {name}, ({results}), {first}, {w.read(right, u64)},"
        f" {w.read(keep, np.bool_)}, lanes)"
    )
    w.write_all(d, lambda j: f"loaded[{j}]", dtype)
    w.emit("loaded = None")


def check_registers(w: Writer, i: Instruction, touched: list[str]) -> None:
    """Before an instruction that may use registers in flight."""
    numbers = w.program.numbers
    if is_move(i) and i.guard is None:
        target, source = (o.name for o in i.operands if isinstance(o, Register))
        if source in touched:
            w.emit(f"m.flights.move(lanes, {numbers[target]}, {numbers[source]})")
            return
    w.site("register")
    name = f"site_{w.program.sites[-1].index}"
    w.emit(f"m.flights.touch({name}, {w.lanes()}, {tuple(numbers[r] for r in touched)})")


HANDLERS: dict[str, Handler] = {"wgmma": _wgmma}
