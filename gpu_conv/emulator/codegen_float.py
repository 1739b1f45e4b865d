"""Floating point of all widths, and conversions."""

from __future__ import annotations

from typing import Any

import numpy as np

from .codegen_base import DTYPE_NAMES, Handler, Modifiers, Writer, value_type
from .ir import TYPE_SIZES, Instruction, Operand
from .numeric import f32, f64, u16, u32

_DIRECTED = ("rz", "rm", "rp")
_ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
# The emulator computes what .approx approximates; tests of kernels need a tolerance for these anyway.
_UNARY = {
    "rcp": "{one} / {0}",
    "sqrt": "np.sqrt({0})",
    "rsqrt": "{one} / np.sqrt({0})",
    "ex2": "np.exp2({0})",
    "lg2": "np.log2({0})",
    "sin": "np.sin({0})",
    "cos": "np.cos({0})",
    "tanh": "np.tanh({0})",
    "neg": "-{0}",
    "abs": "np.abs({0})",
}
_MAY_BE_APPROXIMATE = frozenset(["rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", "div"])
FLOATS = ("f16", "bf16", "f32", "f64")


def _float(w: Writer, i: Instruction, mods: Modifiers) -> None:
    """float32 and float64."""
    kind = mods.type()
    dtype = value_type(kind)
    if i.name in ("rcp.approx.ftz.f64", "rsqrt.approx.ftz.f64"):  # the seeds of Newton iterations
        mods.ignore(("approx", "ftz"))
        text = _UNARY[i.opcode].format(f"upper_word({w.read(i.operands[1], f64)})", one=w.constant(1, f64))
        w.write(i.operands[0], f"upper_word({text})", f64)
        return
    if i.opcode in _MAY_BE_APPROXIMATE:
        mods.ignore(("approx", "full"))
    rounding = mods.choice("rn", *_DIRECTED) or "rn"
    ftz = mods.flag("ftz")
    if kind == "f64" and (ftz or rounding != "rn"):
        raise w.unsupported()
    operands = [w.read(x, dtype) for x in i.operands[1:]]
    if ftz:
        operands = [f"flush({x})" for x in operands]
    text = _directed(w, i, operands, rounding) if rounding != "rn" else _nearest(w, i, mods, operands, dtype)
    if mods.flag("sat"):
        text = f"saturate({text})"
    w.write(i.operands[0], f"flush({text})" if ftz else text, dtype)


def _nearest(w: Writer, i: Instruction, mods: Modifiers, operands: list[str], dtype: Any) -> str:
    if i.opcode in _ARITHMETIC:
        return f"{operands[0]} {_ARITHMETIC[i.opcode]} {operands[1]}"
    if i.opcode in ("fma", "mad"):
        a, b, c = operands
        return f"fma{8 * np.dtype(dtype).itemsize}({a}, {b}, {c})"
    if i.opcode in ("min", "max"):
        function = f"np.{i.opcode}imum" if mods.flag("NaN") else f"np.f{i.opcode}"
        text = f"{function}({operands[0]}, {operands[1]})"
        return f"{function}({text}, {operands[2]})" if len(operands) > 2 else text
    if i.opcode == "copysign":
        return f"np.copysign({operands[1]}, {operands[0]})"
    if i.opcode in _UNARY:
        return _UNARY[i.opcode].format(*operands, one=w.constant(1, dtype))
    raise w.unsupported()


def _directed(w: Writer, i: Instruction, operands: list[str], rounding: str) -> str:
    """float32 with .rz, .rm, .rp: in float64, then rounded in that direction."""
    wide = [f"{x}.astype(f64)" for x in operands]
    if i.opcode in ("add", "sub"):
        text = f"add_to_odd({wide[0]}, {'-' if i.opcode == 'sub' else ''}{wide[1]})"
    elif i.opcode in ("mul", "div"):  # the product is exact, the quotient far enough from every float32
        text = f"{wide[0]} {_ARITHMETIC[i.opcode]} {wide[1]}"
    elif i.opcode == "fma":
        text = f"add_to_odd({wide[0]} * {wide[1]}, {wide[2]})"
    elif i.opcode in ("rcp", "sqrt"):
        text = _UNARY[i.opcode].format(*wide, one=w.constant(1, f64))
    else:
        raise w.unsupported()
    return f"round_to_f32({text}, {rounding!r})"


def _test(w: Writer, i: Instruction, mods: Modifiers) -> None:
    """Testp"""
    test = mods.need("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    dtype = value_type(mods.type())
    x = w.read(i.operands[1], dtype)
    tiny = w.constant(np.finfo(dtype).tiny, dtype)
    text = {
        "finite": f"np.isfinite({x})",
        "infinite": f"np.isinf({x})",
        "number": f"~np.isnan({x})",
        "notanumber": f"np.isnan({x})",
        "normal": f"(np.isfinite({x}) & (np.abs({x}) >= {tiny}))",
        "subnormal": f"((np.abs({x}) < {tiny}) & ({x} != 0))",
    }[test]
    w.write(i.operands[0], text, np.bool_)


# ---- half precision: computed in float32, fma in float64, then rounded once more

_HALF_BINARY = {"add": "np.add", "sub": "np.subtract", "mul": "np.multiply"}


def _half_codec(kind: str) -> tuple[str, str]:
    return ("bfloat_to_float", "float_to_bfloat") if kind[0] == "b" else ("half_to_float", "float_to_half")


def _half(w: Writer, i: Instruction, mods: Modifiers) -> None:
    kind = mods.type()
    dtype: Any = u32 if kind.endswith("x2") else u16
    operands = [w.read(x, dtype) for x in i.operands[1:]]
    if i.opcode in ("neg", "abs"):
        sign = 0x8000 if dtype is u16 else 0x80008000
        text = f"{operands[0]} ^ {w.constant(sign, dtype)}"
        if i.opcode == "abs":
            text = f"{operands[0]} & {w.constant(~sign & np.iinfo(dtype).max, dtype)}"
        w.write(i.operands[0], text, dtype)
        return
    function = _half_function(w, i, mods)
    if mods.flag("relu"):
        function = f"(lambda *x: np.maximum({function}(*x), f32(0)))"
    if mods.flag("sat"):
        function = f"(lambda *x: saturate({function}(*x)))"
    decode, encode = _half_codec(kind)
    if dtype is u32:
        text = f"map_pairs({function}, {decode}, {encode}, {', '.join(operands)})"
    else:
        text = f"{encode}({function}({', '.join(f'{decode}({x})' for x in operands)}))"
    w.write(i.operands[0], text, dtype)


def _half_function(w: Writer, i: Instruction, mods: Modifiers) -> str:
    if i.opcode in ("ex2", "tanh"):
        mods.need("approx")
        return "np.exp2" if i.opcode == "ex2" else "np.tanh"
    if i.opcode in ("min", "max"):
        return f"np.{i.opcode}imum" if mods.flag("NaN") else f"np.f{i.opcode}"
    mods.ignore(("rn",))
    if i.opcode in _HALF_BINARY:
        return _HALF_BINARY[i.opcode]
    if i.opcode == "fma":
        return "(lambda x, y, z: x.astype(f64) * y + z)"
    raise w.unsupported()


def _arithmetic_of(opcode: str, integer: Handler | None) -> Handler:
    """Choose by type: the same opcode exists for integers, floats and halves."""

    def handler(w: Writer, i: Instruction, mods: Modifiers) -> None:
        kind = i.types[-1] if i.types else ""
        if kind in ("f32", "f64"):
            _float(w, i, mods)
        elif kind in ("f16", "bf16", "f16x2", "bf16x2"):
            _half(w, i, mods)
        elif integer:
            integer(w, i, mods)
        else:
            raise w.unsupported()

    return handler


# ---- conversions


def _to_float(w: Writer, operand: Operand, kind: str, ftz: bool) -> tuple[str, str]:
    """The source of a conversion as float32 or float64, and which."""
    if kind in ("f16", "bf16"):
        return f"{_half_codec(kind)[0]}({w.read(operand, u16)})", "f32"
    text = w.read(operand, value_type(kind))
    return (f"flush({text})" if ftz and kind == "f32" else text), kind


def _convert(w: Writer, i: Instruction, mods: Modifiers) -> None:
    kinds = mods.types()
    if len(kinds) != 2:
        raise w.unsupported()
    target, source = kinds
    if target in ("f16x2", "bf16x2"):
        _convert_pair(w, i, mods, target, source)
    elif target == "tf32":
        mode = mods.need("rna", "rn", "rz")
        text = w.read(i.operands[1], f32)
        if mods.flag("relu"):
            text = f"np.maximum({text}, f32(0))"
        w.write(i.operands[0], f"float_to_tf32({text}, {mode!r})", u32)
    elif source in FLOATS:
        _convert_float(w, i, mods, target, source)
    else:
        _convert_integer(w, i, mods, target, source)


def _convert_pair(w: Writer, i: Instruction, mods: Modifiers, target: str, source: str) -> None:
    if source != "f32":
        raise w.unsupported()
    mode = mods.need("rn", "rz")
    high, low = (w.read(x, f32) for x in i.operands[1:])
    if mods.flag("relu"):
        high, low = f"np.maximum({high}, f32(0))", f"np.maximum({low}, f32(0))"
    encode = _half_codec(target)[1]
    w.write(i.operands[0], f"pack(({encode}({low}, {mode!r}), {encode}({high}, {mode!r})), u32)", u32)


def _convert_float(w: Writer, i: Instruction, mods: Modifiers, target: str, source: str) -> None:
    integral = mods.choice("rni", "rzi", "rmi", "rpi")
    mode = mods.choice("rn", *_DIRECTED) or "rn"
    ftz = mods.flag("ftz")
    text, kind = _to_float(w, i.operands[1], source, ftz)
    if target not in FLOATS:
        if not integral:
            raise w.unsupported()
        mods.flag("sat")  # conversions to integers always clamp
        dtype = value_type(target)
        w.write(i.operands[0], f"float_to_integer({text}, {DTYPE_NAMES[dtype]}, {integral!r})", dtype)
        return
    if integral:
        text = f"round_to_integral({text}, {integral!r})"
    if mods.flag("sat"):
        text = f"saturate({text})"
    if mods.flag("relu"):
        text = f"np.maximum({text}, {kind}(0))"
    if target in ("f16", "bf16"):
        if mode not in ("rn", "rz") or (kind == "f64" and mode != "rn"):
            raise w.unsupported()
        w.write(i.operands[0], f"{_half_codec(target)[1]}({text}, {mode!r})", u16)
    elif target == "f32" and kind == "f64":
        text = f"round_to_f32({text}, {mode!r})"
        w.write(i.operands[0], f"flush({text})" if ftz else text, f32)
    else:  # exact
        w.write(i.operands[0], text if target == kind else f"({text}).astype({target})", value_type(target))


def _convert_integer(w: Writer, i: Instruction, mods: Modifiers, target: str, source: str) -> None:
    dtype = value_type(source)
    text = w.read(i.operands[1], dtype)
    if target not in FLOATS:
        wanted = value_type(target)
        if mods.flag("sat"):
            text = f"saturate_integer({text}, {DTYPE_NAMES[wanted]})"
        elif wanted is not dtype:
            text = f"{text}.astype({DTYPE_NAMES[wanted]})"
        w.write(i.operands[0], text, wanted)
        return
    mode = mods.need("rn", *_DIRECTED)
    if target == "f64" and mode == "rn":
        w.write(i.operands[0], f"{text}.astype(f64)", f64)
    elif target == "f32" and mode == "rn":
        w.write(i.operands[0], f"{text}.astype(f32)", f32)
    elif target == "f32" and TYPE_SIZES[source] <= 4:  # exact in float64
        w.write(i.operands[0], f"round_to_f32({text}.astype(f64), {mode!r})", f32)
    elif target in ("f16", "bf16") and mode == "rn" and TYPE_SIZES[source] <= 4:
        w.write(i.operands[0], f"{_half_codec(target)[1]}({text}.astype(f64))", u16)
    else:
        raise w.unsupported()


def handlers(integer: dict[str, Handler]) -> dict[str, Handler]:
    """All handlers of this file; ``integer`` serves the opcodes that exist for integers too."""
    opcodes = {*_ARITHMETIC, *_UNARY, "fma", "mad", "min", "max", "copysign", *integer}
    return {o: _arithmetic_of(o, integer.get(o)) for o in opcodes} | {"testp": _test, "cvt": _convert}
