"""What the parser produces: kernels made of instructions with typed operands."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import UnsupportedPtx

# Bytes of one element of each PTX type; a predicate has no size in memory.
TYPE_SIZES = {
    "pred": 0,
    **dict.fromkeys(("b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 8),
}

SHARED_GUARD = 128  # bytes between two shared variables: all banks once, so that no bank changes


@dataclass(frozen=True)
class Register:
    """A virtual register; registers of inner scopes carry a suffix that makes them unique."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """An integer constant."""

    value: int


@dataclass(frozen=True)
class FloatImmediate:
    """A floating-point constant as its bit pattern (``0f3F800000``, ``0d...``); ``size`` in bytes."""

    bits: int
    size: int


@dataclass(frozen=True)
class Vector:
    """``{a, b, ...}``."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Symbol:
    """A variable, parameter or label."""

    name: str


@dataclass(frozen=True)
class Special:
    """A special register, without its ``%``."""

    name: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``; base is ``None`` for an absolute address."""

    base: Register | Symbol | None
    offset: int


@dataclass(frozen=True)
class TensorAddress:
    """``[map, {c0, c1, ...}]``: a box of a tensor, innermost coordinate first."""

    map: Address
    coordinates: Vector


@dataclass(frozen=True)
class Pair:
    """``first|second``: a destination and its predicate."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Negated:
    """``!p``."""

    operand: Operand


@dataclass(frozen=True)
class Sink:
    """``_``: a destination that nobody reads."""


Operand = (
    Register | Immediate | FloatImmediate | Vector | Symbol | Special | Address | TensorAddress | Pair | Negated | Sink
)


@dataclass(frozen=True)
class SourceLine:
    """A line of CUDA source; ``file`` is the name that the compiler was given."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file.rsplit('/', 1)[-1]}:{self.line}"


@dataclass(eq=False)
class Instruction:
    """One PTX instruction.

    Attributes:
        opcode: first dotted component, for example ``"ld"``.
        modifiers: the other components, in order.
        operands: destination first, as written.
        guard: the predicate of ``@p`` / ``@!p`` with its negation.
        line: 1-based line of the PTX text.
        source: CUDA lines, innermost inlined function first, the line in the kernel last.
        text: the statement as written.
    """

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: tuple[Register, bool] | None = None
    line: int = 0
    source: tuple[SourceLine, ...] = ()
    text: str = ""

    @property
    def name(self) -> str:
        """The full dotted opcode."""
        return ".".join((self.opcode, *self.modifiers))

    @property
    def types(self) -> list[str]:
        """The type modifiers, in order."""
        return [m for m in self.modifiers if m in TYPE_SIZES]

    def unsupported(self, reason: str = "not implemented") -> UnsupportedPtx:
        """The error that names this instruction."""
        return UnsupportedPtx(f"{reason}: PTX line {self.line}: {self.text}")


@dataclass
class Variable:
    """A variable of the module or of a kernel; ``offset`` is its place in the emulated shared or local memory."""

    name: str
    space: str
    size: int
    align: int
    data: bytes | None = None
    extern: bool = False
    offset: int = 0


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter."""

    name: str
    type: str
    size: int


@dataclass
class Kernel:
    """One ``.entry`` as parsed: instructions and labels in order, before they are cut into blocks."""

    name: str
    parameters: list[Parameter]
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    body: list[Instruction | str] = field(default_factory=list)
    branch_targets: dict[str, list[str]] = field(default_factory=dict)
    max_threads: int | None = None
    cluster_blocks: int = 1
    static_shared: int = 0
    dynamic_shared_offset: int = 0
    dynamic_shared_start: int = 0
    local_bytes: int = 0

    def shared_bytes(self, dynamic: int) -> int:
        """Shared memory of a block that is launched with so much dynamic shared memory."""
        return self.dynamic_shared_offset + dynamic if dynamic else self.static_shared

    def shared_extents(self, dynamic: int) -> list[tuple[str, int, int]]:
        """Name, start and end of every shared variable, in ascending order, for so much dynamic shared memory."""
        own = [v for v in self.variables.values() if v.space == "shared" and not v.extern]
        extents = [(v.name, v.offset, v.offset + v.size) for v in own]
        if dynamic:
            start = self.dynamic_shared_start
            extents.append(("dynamic shared memory", start, start + dynamic))
        return extents or [("shared memory", 0, 0)]

    def place_variables(self) -> None:
        """Assign the offsets of shared and local variables; dynamic shared memory follows the static part.

        Shared variables lie apart by a guard more than on a GPU, so that no index can run from one into the next.
        """
        shared = local = guard = 0
        for variable in self.variables.values():
            if variable.space == "shared" and not variable.extern:
                start = _round_up(shared, variable.align)
                shared = start + variable.size
                variable.offset = _round_up(start + guard, variable.align)
                guard = variable.offset - start + SHARED_GUARD
            elif variable.space == "local":
                variable.offset = _round_up(local, variable.align)
                local = variable.offset + variable.size
        dynamic = [v for v in self.variables.values() if v.space == "shared" and v.extern]
        self.static_shared = shared
        align = max([16, *(v.align for v in dynamic)])
        self.dynamic_shared_offset = _round_up(shared, align)
        self.dynamic_shared_start = _round_up(self.dynamic_shared_offset + guard, align)
        for variable in dynamic:
            variable.offset = self.dynamic_shared_start
        self.local_bytes = local


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
