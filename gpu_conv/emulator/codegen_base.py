"""How one instruction becomes lines of Python: operands, constants, guards, modifiers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .ir import (
    TYPE_SIZES,
    FloatImmediate,
    Immediate,
    Instruction,
    Negated,
    Operand,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)
from .numeric import SIGNED, UNSIGNED, f32, f64

if TYPE_CHECKING:
    from .translation import Translation

# Short names of dtypes in generated code.
DTYPE_NAMES: dict[Any, str] = {
    np.bool_: "b1",
    **{t: f"u{8 * n}" for n, t in UNSIGNED.items()},
    **{t: f"i{8 * n}" for n, t in SIGNED.items()},
    np.float16: "f16",
    f32: "f32",
    f64: "f64",
}
NAMED_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
SPECIAL_REGISTERS = {f"{base}.{axis}" for base in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"}
SPECIAL_REGISTERS |= {"laneid", "warpid", "nwarpid", "dynamic_smem_size", "total_smem_size"}
SPECIAL_REGISTERS |= {f"lanemask_{relation}" for relation in ("lt", "le", "eq", "ge", "gt")}
HALVES = ("f16", "bf16", "f16x2", "bf16x2")


def storage_type(kind: str) -> Any:
    """How a register of a PTX type is held: floats as floats, predicates as bools, the rest unsigned."""
    return {"pred": np.bool_, "f32": f32, "f64": f64}.get(kind) or UNSIGNED[TYPE_SIZES[kind]]


def value_type(kind: str) -> Any:
    """How an instruction of a PTX type sees its operands; halves are handled as bits."""
    return SIGNED[TYPE_SIZES[kind]] if kind[0] == "s" else storage_type(kind)


def size_of(dtype: Any) -> int:
    """Bytes of one element."""
    return int(np.dtype(dtype).itemsize)


class Modifiers:
    """The modifiers of an instruction. Handlers take what they understand; what is left is unsupported."""

    def __init__(self, instruction: Instruction) -> None:
        self.instruction = instruction
        self.left = list(instruction.modifiers)

    def flag(self, name: str) -> bool:
        if name in self.left:
            self.left.remove(name)
            return True
        return False

    def choice(self, *names: str) -> str | None:
        """Take the first modifier that is one of these."""
        for modifier in self.left:
            if modifier in names:
                self.left.remove(modifier)
                return modifier
        return None

    def need(self, *names: str) -> str:
        found = self.choice(*names)
        if found is None:
            raise self.instruction.unsupported(f"none of {', '.join(names)}")
        return found

    def ignore(self, names: Iterable[str]) -> None:
        """Take modifiers that change nothing here, such as cache hints."""
        names = frozenset(names)
        self.left = [m for m in self.left if m not in names]

    def types(self) -> list[str]:
        """Take all type modifiers."""
        found = [m for m in self.left if m in TYPE_SIZES]
        self.left = [m for m in self.left if m not in TYPE_SIZES]
        return found

    def type(self) -> str:
        found = self.types()
        if len(found) != 1:
            raise self.instruction.unsupported("needs one type")
        return found[0]

    def finish(self) -> None:
        if self.left:
            raise self.instruction.unsupported(f"modifier .{self.left[0]} not implemented")


class Writer:
    """Collects the lines of one basic block."""

    def __init__(self, program: Translation) -> None:
        self.program = program
        self.lines: list[str] = []
        self.instruction = Instruction("", (), ())

    def emit(self, line: str) -> None:
        self.lines.append(line)

    def unsupported(self, reason: str = "not implemented") -> Exception:
        return self.instruction.unsupported(reason)

    def site(self, kind: str) -> str:
        """Name of the site (counters, location) of the current instruction."""
        return self.program.add_site(self.instruction, kind)

    def constant(self, value: Any, dtype: Any) -> str:
        """Name of a NumPy scalar with these bits."""
        scalar = np.asarray(value, dtype)[()]
        bits = int.from_bytes(scalar.tobytes(), "little")
        name = f"{DTYPE_NAMES[np.dtype(dtype).type]}_{bits:x}"
        self.program.namespace[name] = scalar
        return name

    def parameter_size(self, name: str) -> int:
        """Bytes of a kernel parameter; 0 if there is none of that name."""
        return next((p.size for p in self.program.kernel.parameters if p.name == name), 0)

    def name(self, register: str) -> str:
        return _name(register)

    # ---- operands

    def read(self, operand: Operand, dtype: Any) -> str:
        """Expression for an operand, seen as ``dtype``; a wider register is cut, a narrower one zero-extended."""
        match operand:
            case Register(name):
                return self._cast(self.name(name), self.program.register_types[name], dtype)
            case Immediate(value):
                if dtype is np.bool_:
                    return self.constant(bool(value), dtype)
                bits = value % (1 << 8 * size_of(dtype))
                return self.constant(np.asarray(bits, UNSIGNED[size_of(dtype)]).view(dtype), dtype)
            case FloatImmediate(bits, size):
                exact = np.asarray(bits, UNSIGNED[size])
                if np.dtype(dtype).kind == "f":
                    return self.constant(exact.view({4: f32, 8: f64}[size]).astype(dtype), dtype)
                return self.constant(exact.astype(UNSIGNED[size_of(dtype)]).view(dtype), dtype)
            case Special(name):
                if name not in SPECIAL_REGISTERS:
                    raise self.unsupported(f"special register %{name}")
                return f"m.special({name!r}).astype({DTYPE_NAMES[dtype]}, copy=False)"
            case Symbol(name):
                if not self.program.has_symbol(name):
                    raise self.unsupported(f"symbol {name}")
                return f"m.address_of({name!r}).astype({DTYPE_NAMES[dtype]})"
            case Negated(inner):
                return f"~{self.read(inner, dtype)}"
        raise self.unsupported(f"operand {operand}")

    def _cast(self, text: str, stored: Any, dtype: Any) -> str:
        if stored is dtype:
            return text
        if stored is np.bool_ or dtype is np.bool_:
            raise self.unsupported("predicate used as a number")
        if size_of(stored) == size_of(dtype):
            return f"{text}.view({DTYPE_NAMES[dtype]})"
        if np.dtype(stored).kind == "f":
            text = f"{text}.view({DTYPE_NAMES[UNSIGNED[size_of(stored)]]})"
        unsigned = UNSIGNED[size_of(dtype)]
        text = f"{text}.astype({DTYPE_NAMES[unsigned]})"
        return text if unsigned is dtype else f"{text}.view({DTYPE_NAMES[dtype]})"

    def write(self, operand: Operand, text: str, dtype: Any) -> None:
        """Assign an expression of type ``dtype``, under the guard; signed values are sign-extended."""
        if isinstance(operand, Sink):
            return
        if not isinstance(operand, Register):
            raise self.unsupported(f"destination {operand}")
        stored = self.program.register_types[operand.name]
        if stored is not dtype:
            if stored is np.bool_ or dtype is np.bool_:
                raise self.unsupported("predicate used as a number")
            if size_of(stored) != size_of(dtype):
                if np.dtype(dtype).kind == "f":
                    text, dtype = f"({text}).view({DTYPE_NAMES[UNSIGNED[size_of(dtype)]]})", UNSIGNED[size_of(dtype)]
                wide = (SIGNED if np.dtype(dtype).kind == "i" else UNSIGNED)[size_of(stored)]
                text, dtype = f"({text}).astype({DTYPE_NAMES[wide]})", wide
            if stored is not dtype:
                text = f"({text}).view({DTYPE_NAMES[stored]})"
        name = self.name(operand.name)
        guard = self.guard()
        self.emit(f"{name} = select({guard}, {text}, {name})" if guard else f"{name} = {text}")

    def write_all(self, operand: Operand, texts: Callable[[int], str], dtype: Any) -> None:
        """Assign to each element of a vector destination (or to a single register)."""
        for i, item in enumerate(items_of(operand)):
            self.write(item, texts(i), dtype)

    # ---- guards

    def guard(self) -> str | None:
        if self.instruction.guard is None:
            return None
        register, negated = self.instruction.guard
        return ("~" if negated else "") + self.name(register.name)

    def lanes(self) -> str:
        """Name of the lanes that execute the current instruction."""
        if self.instruction.guard is None:
            return "lanes"
        register, negated = self.instruction.guard
        self.emit(f"guarded = m.narrow(lanes, {self.name(register.name)}, {negated})")
        return "guarded"


@lru_cache(4096)
def _name(register: str) -> str:
    return "_" + re.sub(r"\W", "_", register.removeprefix("%"))


def items_of(operand: Operand) -> tuple[Operand, ...]:
    """The elements of a vector operand; any other operand is its own only element."""
    return operand.items if isinstance(operand, Vector) else (operand,)


Handler = Callable[[Writer, Instruction, Modifiers], None]
