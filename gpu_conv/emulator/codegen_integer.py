"""Integers, bits, predicates, moves and comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np

from .codegen_base import DTYPE_NAMES, HALVES, Handler, Modifiers, Writer, items_of, size_of, value_type
from .ir import TYPE_SIZES, Immediate, Instruction, Pair, Vector
from .numeric import SIGNED, UNSIGNED, f32, u16, u32, u64
from .windows import LOCAL_WINDOW, SHARED_WINDOW

_BITWISE = {"and": "&", "or": "|", "xor": "^"}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_COMPARE |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
# Unordered comparisons are true if an operand is NaN: the negation of the opposite ordered one.
_UNORDERED = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<", "neu": "=="}


def _kind(w: Writer, mods: Modifiers, allowed: str = "usb") -> str:
    kind = mods.type()
    if kind[0] not in allowed or kind == "bf16" or kind in HALVES or "x2" in kind:
        raise w.unsupported(f"type .{kind} not implemented")
    return kind


def _add(w: Writer, i: Instruction, mods: Modifiers) -> None:
    kind = _kind(w, mods)
    sign = {"add": "+", "sub": "-"}[i.opcode]
    if mods.flag("sat"):
        if kind != "s32":
            raise w.unsupported()
        a, b = (f"{w.read(x, SIGNED[4])}.astype(i64)" for x in i.operands[1:])
        w.write(i.operands[0], f"saturate_integer({a} {sign} {b}, i32)", SIGNED[4])
        return
    dtype = UNSIGNED[TYPE_SIZES[kind]]
    w.write(i.operands[0], f"{w.read(i.operands[1], dtype)} {sign} {w.read(i.operands[2], dtype)}", dtype)


def _multiply(w: Writer, i: Instruction, mods: Modifiers) -> None:
    half = mods.need("lo", "hi", "wide")
    kind = _kind(w, mods, "us")
    a, b, *rest = i.operands[1:]
    size = TYPE_SIZES[kind]
    dtype: Any = UNSIGNED[size]
    if half == "lo":
        text = f"{w.read(a, dtype)} * {w.read(b, dtype)}"
    elif half == "hi":
        dtype = value_type(kind)
        text = f"multiply_high({w.read(a, dtype)}, {w.read(b, dtype)})"
    else:
        if size == 8:
            raise w.unsupported()
        dtype = (SIGNED if kind[0] == "s" else UNSIGNED)[2 * size]
        narrow, wide = value_type(kind), DTYPE_NAMES[dtype]
        text = f"{w.read(a, narrow)}.astype({wide}) * {w.read(b, narrow)}.astype({wide})"
    if rest:
        text = f"{text} + {w.read(rest[0], dtype)}"
    w.write(i.operands[0], text, dtype)


def _binary(w: Writer, i: Instruction, mods: Modifiers) -> None:
    function = {"div": "divide", "rem": "remainder", "min": "np.minimum", "max": "np.maximum"}[i.opcode]
    relu = i.opcode in ("min", "max") and mods.flag("relu")  # PTX has it for s32 and s16x2
    kind = _kind(w, mods, "us")
    if relu and kind != "s32":
        raise w.unsupported()
    dtype = value_type(kind)
    text = f"{function}({w.read(i.operands[1], dtype)}, {w.read(i.operands[2], dtype)})"
    w.write(i.operands[0], f"np.maximum({text}, {w.constant(0, dtype)})" if relu else text, dtype)


def _unary(w: Writer, i: Instruction, mods: Modifiers) -> None:
    dtype = value_type(_kind(w, mods, "s"))
    operand = w.read(i.operands[1], dtype)
    w.write(i.operands[0], f"-{operand}" if i.opcode == "neg" else f"np.abs({operand})", dtype)


def _sad(w: Writer, i: Instruction, mods: Modifiers) -> None:
    kind = _kind(w, mods, "us")
    dtype, unsigned = value_type(kind), UNSIGNED[TYPE_SIZES[kind]]
    a, b = (w.read(x, dtype) for x in i.operands[1:3])
    distance = f"(np.maximum({a}, {b}) - np.minimum({a}, {b})).view({DTYPE_NAMES[unsigned]})"
    w.write(i.operands[0], f"{w.read(i.operands[3], unsigned)} + {distance}", unsigned)


def _logic(w: Writer, i: Instruction, mods: Modifiers) -> None:
    kind = mods.type()
    if kind[0] not in "pb" or "x2" in kind or kind == "bf16":
        raise w.unsupported()
    dtype = value_type(kind)
    operands = [w.read(x, dtype) for x in i.operands[1:]]
    if i.opcode == "not":
        text = f"~{operands[0]}"
    elif i.opcode == "cnot":
        text = f"({operands[0]} == 0).astype({DTYPE_NAMES[dtype]})"
    else:
        text = f"{operands[0]} {_BITWISE[i.opcode]} {operands[1]}"
    w.write(i.operands[0], text, dtype)


def _shift(w: Writer, i: Instruction, mods: Modifiers) -> None:
    kind = _kind(w, mods)
    dtype = value_type(kind)
    value, amount = i.operands[1:]
    if isinstance(amount, Immediate) and 0 <= amount.value < 8 * TYPE_SIZES[kind]:
        text = f"{w.read(value, dtype)} {'<<' if i.opcode == 'shl' else '>>'} {w.constant(amount.value, dtype)}"
    else:
        function = "shift_left" if i.opcode == "shl" else "shift_right"
        text = f"{function}({w.read(value, dtype)}, {w.read(amount, u32)})"
    w.write(i.operands[0], text, dtype)


def _lop3(w: Writer, i: Instruction, mods: Modifiers) -> None:
    if mods.type() != "b32" or not isinstance(i.operands[4], Immediate):
        raise w.unsupported()
    operands = ", ".join(w.read(x, u32) for x in i.operands[1:4])
    w.write(i.operands[0], f"lop3({operands}, {i.operands[4].value})", u32)


def _three_words(w: Writer, i: Instruction, mods: Modifiers) -> None:
    """prmt, shf, dp4a, dp2a: three 32-bit operands."""
    a, b, c = (w.read(x, u32) for x in i.operands[1:4])
    if i.opcode == "prmt":
        mods.need("b32")
        text = f"permute_bytes({a}, {b}, {c})"
    elif i.opcode == "shf":
        left, clamp = mods.need("l", "r") == "l", mods.need("clamp", "wrap") == "clamp"
        mods.need("b32")
        text = f"funnel_shift({a}, {b}, {c}, {left}, {clamp})"
    else:
        high = mods.need("lo", "hi") == "hi" if i.opcode == "dp2a" else None
        types = mods.types()
        if len(types) != 2 or any(t not in ("u32", "s32") for t in types):
            raise w.unsupported()
        signs = ["i" if t[0] == "s" else "u" for t in types]
        if high is None:
            text = f"dot4({a}, {b}, {c}, {signs[0]}8, {signs[1]}8)"
        else:
            text = f"dot2({a}, {b}, {c}, {signs[0]}16, {signs[1]}8, {high})"
    w.write(i.operands[0], text, u32)


def _bits(w: Writer, i: Instruction, mods: Modifiers) -> None:
    """popc, clz, brev, bfind: one operand."""
    as_shift = mods.flag("shiftamt")
    kind = _kind(w, mods)
    dtype = value_type(kind)
    operand = w.read(i.operands[1], dtype)
    match i.opcode:
        case "popc":
            w.write(i.operands[0], f"population_count({operand})", u32)
        case "clz":
            w.write(i.operands[0], f"count_leading_zeros({operand})", u32)
        case "brev":
            w.write(i.operands[0], f"reverse_bits({operand})", dtype)
        case _:
            w.write(i.operands[0], f"find_leading_bit({operand}, {as_shift})", u32)


def _field(w: Writer, i: Instruction, mods: Modifiers) -> None:
    kind = _kind(w, mods)
    if TYPE_SIZES[kind] != 4:
        raise w.unsupported()
    first = w.read(i.operands[1], value_type(kind))
    rest = ", ".join(w.read(x, u32) for x in i.operands[2:])
    w.write(i.operands[0], f"{'extract' if i.opcode == 'bfe' else 'insert'}_field({first}, {rest})", u32)


def _move(w: Writer, i: Instruction, mods: Modifiers) -> None:
    kind = mods.type()
    target, source = i.operands
    if isinstance(source, Vector):
        wide = UNSIGNED[TYPE_SIZES[kind]]
        part = UNSIGNED[TYPE_SIZES[kind] // len(source.items)]
        parts = ", ".join(w.read(x, part) for x in source.items)
        w.write(target, f"pack(({parts}), {DTYPE_NAMES[wide]})", wide)
    elif isinstance(target, Vector):
        wide = UNSIGNED[TYPE_SIZES[kind]]
        part = UNSIGNED[TYPE_SIZES[kind] // len(target.items)]
        w.emit(f"whole = {w.read(source, wide)}")
        for j, item in enumerate(items_of(target)):
            amount = w.constant(8 * size_of(part) * j, wide)
            w.write(item, f"(whole >> {amount}).astype({DTYPE_NAMES[part]})", part)
    else:
        dtype = value_type(kind)
        w.write(target, w.read(source, dtype), dtype)


def _cvta(w: Writer, i: Instruction, mods: Modifiers) -> None:
    """Generic addresses: shared and local memory have a window each, the rest is global."""
    to_space = mods.flag("to")
    space = mods.need("global", "shared", "local", "const", "param", "shared::cta", "param::entry").split("::")[0]
    kind = mods.need("u64", "u32")
    if kind != "u64":
        raise w.unsupported()
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space, 0)
    text = w.read(i.operands[1], u64)
    if window:
        text += f" {'-' if to_space else '+'} {w.constant(window, u64)}"
    w.write(i.operands[0], text, u64)


def _is_space(w: Writer, i: Instruction, mods: Modifiers) -> None:
    space = mods.need("global", "shared", "local", "shared::cta").split("::")[0]
    w.write(i.operands[0], f"m.is_space({space!r}, {w.read(i.operands[1], u64)})", np.bool_)


def _select(w: Writer, i: Instruction, mods: Modifiers) -> None:
    if i.opcode == "selp":
        dtype = value_type(mods.type())
        condition = w.read(i.operands[3], np.bool_)
    else:
        kinds = mods.types()
        if len(kinds) != 2 or kinds[1] not in ("s32", "f32"):
            raise w.unsupported()
        dtype = value_type(kinds[0])
        condition = f"({w.read(i.operands[3], value_type(kinds[1]))} >= 0)"
    w.write(
        i.operands[0], f"select({condition}, {w.read(i.operands[1], dtype)}, {w.read(i.operands[2], dtype)})", dtype
    )


def _comparison(w: Writer, comparison: str, kind: str, a: Any, b: Any, ftz: bool) -> str:
    """Expression of a comparison of two operands of a PTX type."""
    if kind in ("f16", "bf16"):
        decode = "half_to_float" if kind == "f16" else "bfloat_to_float"
        x, y = f"{decode}({w.read(a, u16)})", f"{decode}({w.read(b, u16)})"
    elif "x2" in kind or kind == "pred":
        raise w.unsupported()
    else:
        x, y = w.read(a, value_type(kind)), w.read(b, value_type(kind))
        if ftz:
            x, y = f"flush({x})", f"flush({y})"
    if kind[0] == "f" or kind == "bf16":
        if comparison in ("num", "nan"):
            return f"{'~' if comparison == 'num' else ''}(np.isnan({x}) | np.isnan({y}))"
        if comparison == "ne":  # ordered: false for NaN, unlike Python's
            return f"(({x} < {y}) | ({x} > {y}))"
        if comparison == "equ":
            return f"~(({x} < {y}) | ({x} > {y}))"
        if comparison in _UNORDERED:
            return f"~({x} {_UNORDERED[comparison]} {y})"
    return f"({x} {_COMPARE[comparison]} {y})"


def _compare(w: Writer, i: Instruction, mods: Modifiers) -> None:
    comparison = mods.need(*_COMPARE, *_UNORDERED, "equ", "num", "nan")
    combine, ftz = mods.choice(*_BITWISE), mods.flag("ftz")
    kinds = mods.types()
    if len(kinds) != (1 if i.opcode == "setp" else 2):
        raise w.unsupported()
    text = _comparison(w, comparison, kinds[-1], i.operands[1], i.operands[2], ftz)
    third = f" {_BITWISE[combine]} {w.read(i.operands[3], np.bool_)}" if combine else ""
    if i.opcode == "setp":
        target = i.operands[0]
        both = (target.first, target.second) if isinstance(target, Pair) else (target,)
        w.emit(f"truth = {text}")
        for j, item in enumerate(both):
            w.write(item, f"{'~' if j else ''}truth{third}", np.bool_)
        return
    ones: dict[str, tuple[Any, Any]] = {"f32": (1.0, f32), "f16": (0x3C00, u16), "bf16": (0x3F80, u16)}
    if kinds[0] not in (*ones, "u32", "s32"):
        raise w.unsupported()
    one, dtype = ones.get(kinds[0], (0xFFFFFFFF, u32))
    w.write(i.operands[0], f"select({text}{third}, {w.constant(one, dtype)}, {w.constant(0, dtype)})", dtype)


INTEGER_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("add", "sub"), _add),
    **dict.fromkeys(("mul", "mad"), _multiply),
    **dict.fromkeys(("div", "rem", "min", "max"), _binary),
    **dict.fromkeys(("neg", "abs"), _unary),
    "sad": _sad,
}
HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(("and", "or", "xor", "not", "cnot"), _logic),
    **dict.fromkeys(("shl", "shr"), _shift),
    "lop3": _lop3,
    **dict.fromkeys(("prmt", "shf", "dp4a", "dp2a"), _three_words),
    **dict.fromkeys(("popc", "clz", "brev", "bfind"), _bits),
    **dict.fromkeys(("bfe", "bfi"), _field),
    "mov": _move,
    "cvta": _cvta,
    "isspacep": _is_space,
    **dict.fromkeys(("selp", "slct"), _select),
    **dict.fromkeys(("setp", "set"), _compare),
}
