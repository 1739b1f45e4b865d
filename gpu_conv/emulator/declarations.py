"""Declarations of PTX: parameters, variables with their initial values, integer literals."""

from __future__ import annotations

import re

from .errors import PtxSyntaxError
from .ir import TYPE_SIZES, Parameter, Variable

_INITIAL_VALUE = re.compile(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|-?0[xX][0-9a-fA-F]+|-?\d+")


def parse_integer(text: str) -> int:
    """An integer literal: decimal, octal, ``0x``, ``0b``, with an optional sign and ``U``."""
    text = text.rstrip("U")
    digits = text.lstrip("-")
    prefix = digits[:2].lower()
    base = 16 if prefix == "0x" else 2 if prefix == "0b" else 8 if len(digits) > 1 and digits[0] == "0" else 10
    value = int(digits, base)
    return -value if text.startswith("-") else value


def _declared_type(text: str) -> str:
    types = [t for t in re.findall(r"\.(\w+)", text) if t in TYPE_SIZES]
    if not types:
        raise PtxSyntaxError(f"declaration without a known type: {text!r}")
    return str(types[-1])


def parameter(text: str) -> Parameter:
    """``.param .align 8 .b8 name[64]``."""
    kind = _declared_type(text.rsplit(" ", 1)[0])
    match = re.search(r"([\w$]+)\s*(?:\[(\d+)\])?\s*$", text)
    if not match:
        raise PtxSyntaxError(f"parameter {text!r}")
    return Parameter(match[1], kind, TYPE_SIZES[kind] * int(match[2] or 1))


def variable(text: str) -> Variable:
    """``.shared .align 16 .b8 name[1024]``, ``.const .u32 name[2] = {1, 2}``."""
    head, _, value = text.partition("=")
    space = re.search(r"\.(shared|global|const|local)\b", head)
    align = re.search(r"\.align\s+(\d+)", head)
    name = re.search(r"([A-Za-z_$%][\w$]*)\s*((?:\[\s*\d*\s*\])*)\s*$", head)
    if not space or not name:
        raise PtxSyntaxError(f"variable {text!r}")
    size = element = TYPE_SIZES[_declared_type(head[: name.start()])]
    for length in re.findall(r"\[\s*(\d*)\s*\]", name[2]):
        size *= int(length or 0)
    data = _initial_bytes(value, element).ljust(size, b"\0") if value else None
    return Variable(name[1], space[1], size, int(align[1]) if align else element, data, ".extern" in head)


def _initial_bytes(text: str, element: int) -> bytes:
    if re.search(r"[A-Za-z_$]", _INITIAL_VALUE.sub("", text)):
        raise PtxSyntaxError(f"initial value by symbol: {text!r}")
    data = b""
    for item in _INITIAL_VALUE.findall(text):
        if item[:2].lower() in ("0f", "0d"):
            data += bytes.fromhex(item[2:])[::-1]
        else:
            data += (parse_integer(item) % (1 << 8 * element)).to_bytes(element, "little")
    return data
