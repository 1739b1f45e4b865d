"""A kernel translated to Python: one function per basic block, made of NumPy calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from types import CodeType
from typing import Any, TypeAlias

import numpy as np

from . import numeric
from .cfg import Block, build_blocks
from .codegen_async import HANDLERS as ASYNC
from .codegen_async import phase_test
from .codegen_base import NAMED_DTYPES, Handler, Modifiers, Writer, storage_type
from .codegen_float import handlers as float_handlers
from .codegen_integer import HANDLERS as INTEGER
from .codegen_integer import INTEGER_HANDLERS
from .codegen_memory import HANDLERS as MEMORY
from .codegen_warp import HANDLERS as WARP
from .codegen_wgmma import HANDLERS as WGMMA
from .codegen_wgmma import check_registers
from .counters import instruction_class
from .errors import UnsupportedPtx
from .ir import TYPE_SIZES, Immediate, Instruction, Kernel, Register
from .parser import parse
from .site import Barrier, PhaseTest
from .translation import Translation

# A block: registers, lanes and machine -> what its end needs.
Function: TypeAlias = Callable[[list[Any], Any, Any], Any]

_HANDLERS: dict[str, Handler] = {**INTEGER, **float_handlers(INTEGER_HANDLERS), **MEMORY, **WARP, **ASYNC, **WGMMA}


class Program(Translation):
    """One kernel, ready to run.

    Attributes:
        blocks: its basic blocks; ``functions``: ``f(registers, lanes, machine)`` for each, which returns the value
            that the end of the block depends on (branch predicate, switch index, barrier operand).
        has_fence: does it have a fence that another block could see?
        orders_warps: does anything order the shared-memory accesses within a warp, but not those of the block?
        asynchronous: does it use mbarriers or the asynchronous proxy, which barriers of the block don't order?
        shared_granule, global_granule: narrowest access to shared memory and narrowest write to global memory, bytes.
    """

    def __init__(self, kernel: Kernel) -> None:
        if kernel.cluster_blocks > 1:
            raise UnsupportedPtx(f"{kernel.name} runs in clusters of {kernel.cluster_blocks} blocks: not implemented")
        self.blocks = build_blocks(kernel)
        types = {name: storage_type(kind) for name, kind in kernel.registers.items()}
        super().__init__(kernel, self.blocks, types, {**vars(numeric), **NAMED_DTYPES, "np": np})
        self.barriers: dict[int, Barrier] = {}
        self.phase_tests: dict[int, PhaseTest] = {}
        instructions = [i for block in self.blocks for i in block.instructions]
        self.has_fence = any(i.opcode in ("membar", "fence") or _orders(i) for i in instructions)
        self.orders_warps = any(i.opcode == "ldmatrix" or i.name.startswith("bar.warp") for i in instructions)
        self.asynchronous = any(i.opcode in ("mbarrier", "wgmma") or "bulk" in i.modifiers for i in instructions)
        self.shared_granule = min([16, *(n for i in instructions for n in _shared_sizes(i))])
        self.global_granule = min([16, *(n for i in instructions for n in _global_write_sizes(i))])
        self.classes = [[(instruction_class(i), i.name) for i in block.instructions] for block in self.blocks]
        self.functions = [self._compiled_at_first_call(block.index, self._translate(block)) for block in self.blocks]
        number = self.numbers
        self.live_in = [frozenset(number[r] for r in b.live_in) for b in self.blocks]
        self.touched = [frozenset(number[r] for r in b.defined | b.live_in) for b in self.blocks]

    def fresh_registers(self) -> list[Any]:
        return [dtype(0) for dtype in self.register_types.values()]

    def _translate(self, block: Block) -> str:
        writer = Writer(self)
        number, name = self.numbers, writer.name
        for register in sorted(block.used):
            writer.emit(f"{name(register)} = registers[{number[register]}]")
        for register in sorted(block.used - block.live_out):  # let go of the memory as early as possible
            writer.emit(f"registers[{number[register]}] = None")
        result = "None"
        for instruction, dead in zip(block.instructions, _last_uses(block), strict=True):
            writer.instruction = instruction
            if touched := self.hazards.touched.get(id(instruction)):
                check_registers(writer, instruction, touched)
            if instruction is block.terminator:
                result = self._terminate(writer, block, instruction)
                break
            handler = _HANDLERS.get(instruction.opcode)
            if handler is None:
                raise instruction.unsupported("opcode not implemented")
            modifiers = Modifiers(instruction)
            handler(writer, instruction, modifiers)
            modifiers.finish()
            for register in sorted(dead):
                writer.emit(f"{name(register)} = None")
        for register in sorted(block.defined & block.live_out):
            if number[register] != self._outside_target(block):
                writer.emit(f"registers[{number[register]}] = {name(register)}")
        writer.emit(f"return {result}")
        return f"def block_{block.index}(registers, lanes, m):\n    " + "\n    ".join(writer.lines)

    def _compiled_at_first_call(self, index: int, source: str) -> Function:
        """Everything is translated, and so refused, at once; a third of that time would go into Python's compiler."""

        def first_call(registers: list[Any], lanes: Any, machine: Any) -> Any:
            exec(_compiled(source), self.namespace)
            self.functions[index] = self.namespace[f"block_{index}"]
            return self.functions[index](registers, lanes, machine)

        return first_call

    def _outside_target(self, block: Block) -> int:
        """The register that the scheduler sets when the threads go on."""
        waiting = self.barriers.get(block.index) or self.phase_tests.get(block.index)
        return waiting.target if waiting else -1

    def _terminate(self, writer: Writer, block: Block, instruction: Instruction) -> str:
        """The expression that the scheduler needs to continue."""
        if block.end == "barrier":
            return self._barrier(writer, block, instruction)
        if block.end == "phase":
            self.phase_tests[block.index], operands = phase_test(writer, instruction)
            return operands
        if block.end == "switch":
            return writer.read(instruction.operands[0], numeric.u32)
        if block.end == "trap" and instruction.guard:
            raise instruction.unsupported("guarded trap")
        return writer.guard() or "None"

    def _barrier(self, writer: Writer, block: Block, instruction: Instruction) -> str:
        modifiers, operands = Modifiers(instruction), instruction.operands
        aligned = modifiers.flag("aligned") or instruction.opcode == "bar"
        modifiers.ignore(("cta",))
        action = modifiers.need("sync", "red")
        number = operands[action == "red"] if len(operands) > (action == "red") else Immediate(0)
        if not isinstance(number, Immediate) or len(operands) != (3 if action == "red" else 1):
            raise instruction.unsupported("barrier for a part of the block")
        if action == "sync":
            modifiers.finish()
            self.barriers[block.index] = Barrier(number.value, aligned)
            return "None"
        reduction = modifiers.need("popc", "and", "or")
        modifiers.need("u32", "pred")
        modifiers.finish()
        target = operands[0]
        if not isinstance(target, Register):
            raise instruction.unsupported()
        self.barriers[block.index] = Barrier(number.value, aligned, reduction, self.numbers[target.name])
        return writer.read(operands[2], np.bool_)


@lru_cache(4096)  # kernels that differ in a few places, as in mutation testing, share the rest
def _compiled(source: str) -> CodeType:
    return compile(source, "<PTX>", "exec")


@lru_cache(32)  # some 5 MB each
def load_program(ptx: str, entry: str) -> Program:
    """Parse and translate one kernel of a PTX module; cached."""
    kernels = parse(ptx)
    if entry not in kernels:
        raise ValueError(f"no kernel {entry!r} in the module; it has {', '.join(kernels) or 'none'}")
    return Program(kernels[entry])


def _last_uses(block: Block) -> list[set[str]]:
    """For each instruction, the registers that nobody needs after it."""
    live = set(block.live_out)
    dead = []
    for defined, used in reversed(block.accesses):
        dead.append((defined | used) - live)
        live = (live - (defined - used)) | used
    return dead[::-1]


def _orders(instruction: Instruction) -> bool:
    return any(m in ("acquire", "release", "acq_rel") for m in instruction.modifiers)


def _access_size(instruction: Instruction) -> int:
    types = instruction.types
    counts = [int(m[1]) for m in instruction.modifiers if re.fullmatch(r"v[248]", m)]
    return TYPE_SIZES[types[-1]] * (counts[0] if counts else 1) if types else 16


def _spaces(instruction: Instruction) -> set[str]:
    spaces = {m.split("::")[0] for m in instruction.modifiers}
    return spaces & {"global", "shared", "local", "param", "const"} or {"generic"}


def _shared_sizes(instruction: Instruction) -> list[int]:
    if instruction.opcode == "mbarrier":
        return [8]
    if instruction.opcode in ("ld", "st", "atom", "red") and _spaces(instruction) & {"shared", "generic"}:
        return [_access_size(instruction)]
    if instruction.opcode == "cp" and len(instruction.operands) > 2 and isinstance(instruction.operands[2], Immediate):
        return [] if "bulk" in instruction.modifiers else [instruction.operands[2].value]
    return []


def _global_write_sizes(instruction: Instruction) -> list[int]:
    if "bulk_group" in instruction.modifiers:
        return [1]  # rows of a box may begin at any element
    if instruction.opcode in ("st", "atom", "red") and _spaces(instruction) & {"global", "generic"}:
        return [_access_size(instruction)]
    return []
