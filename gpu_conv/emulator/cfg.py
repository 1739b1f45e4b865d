"""Basic blocks and liveness.

A block starts at every label, after every branch and barrier, and at every warp-synchronous instruction whose
warps may be incomplete there: the scheduler parks threads at the start of a block only. An instruction that needs
the whole warp leaves its warps complete, so those that follow it in the block need no check of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .errors import PtxSyntaxError
from .ir import (
    Address,
    Immediate,
    Instruction,
    Kernel,
    Negated,
    Operand,
    Pair,
    Register,
    Symbol,
    TensorAddress,
    Vector,
)
from .lanes import WARP

# Opcodes without a destination operand (`bar.red` is the exception); nor has what begins with an address.
_NO_DESTINATION = {"bra", "brx", "ret", "exit", "trap", "bar", "barrier", "membar", "fence", "st", "red", "cp"}
_NO_DESTINATION |= {"nanosleep", "pmevent", "prefetch", "prefetchu", "setmaxnreg"}
# Warp-synchronous opcodes and the position of their member mask; None: the whole warp.
_WARP_SYNC: dict[str, int | None] = {
    "mma": None,
    "ldmatrix": None,
    "movmatrix": None,
    "shfl": -1,
    "vote": -1,
    "match": -1,
    "redux": -1,
    "elect": -1,
    "setmaxnreg": None,
    "wgmma": None,
}
_WARPGROUP_SYNC = frozenset(("wgmma", "setmaxnreg"))
WARPGROUP = 4 * WARP
_ALL_LANES = 0xFFFFFFFF


@dataclass(eq=False)
class Block:
    """A run of instructions that all its threads execute.

    Attributes:
        end: how it ends: ``next``, ``jump``, ``branch``, ``switch``, ``exit``, ``barrier``, ``phase`` (a test of an
            mbarrier, at which threads may have to wait) or ``trap``.
        targets: block numbers of its jumps; a branch or guarded exit that isn't taken goes to ``index + 1``.
        together: its first instruction needs every live lane of so many neighbours: of a warp, a warpgroup, or 0.
        member_mask: the mask operand of its first instruction, where threads park until the mask has arrived.
        accesses: the registers that each instruction writes, and those that it reads.
    """

    index: int
    instructions: list[Instruction] = field(default_factory=list)
    end: str = "next"
    targets: list[int] = field(default_factory=list)
    together: int = 0
    member_mask: Operand | None = None
    accesses: list[tuple[set[str], set[str]]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    defined: set[str] = field(default_factory=set)
    live_in: set[str] = field(default_factory=set)
    live_out: set[str] = field(default_factory=set)

    @property
    def terminator(self) -> Instruction | None:
        return self.instructions[-1] if self.end != "next" else None

    @property
    def parks(self) -> bool:
        return bool(self.together) or self.member_mask is not None


def is_barrier(instruction: Instruction) -> bool:
    """Does it synchronise the block?"""
    return instruction.opcode in ("bar", "barrier") and "warp" not in instruction.modifiers


def is_phase_test(instruction: Instruction) -> bool:
    """Does it ask whether a phase of an mbarrier is over?"""
    return instruction.opcode == "mbarrier" and instruction.modifiers[0] in ("test_wait", "try_wait")


def is_warp_sync(instruction: Instruction) -> bool:
    """Does it wait for other lanes of the warp?"""
    if instruction.opcode == "bar":
        return "warp" in instruction.modifiers
    return instruction.opcode in _WARP_SYNC


def member_mask(instruction: Instruction) -> Operand | None:
    """The member mask of a warp-synchronous instruction; ``None`` if it needs the whole warp."""
    position = -1 if instruction.opcode == "bar" else _WARP_SYNC[instruction.opcode]
    if position is None:
        return None
    mask = instruction.operands[position]
    if isinstance(mask, Immediate) and mask.value & _ALL_LANES == _ALL_LANES:
        return None
    return mask


def build_blocks(kernel: Kernel) -> list[Block]:
    """Cut a kernel into blocks, with targets and liveness."""
    blocks, labels = _cut(_branch_around_guarded_syncs(kernel.body))
    for block in blocks:
        last = block.terminator
        if last is None or last.opcode not in ("bra", "brx"):
            continue
        names = [last.operands[-1]]
        if last.opcode == "brx":
            table = last.operands[-1]
            assert isinstance(table, Symbol)
            names = [Symbol(n) for n in kernel.branch_targets[table.name]]
        for name in names:
            if not isinstance(name, Symbol) or name.name not in labels:
                raise PtxSyntaxError(f"PTX line {last.line}: unknown label: {last.text}")
            block.targets.append(labels[name.name])
    _liveness(blocks)
    return blocks


def _branch_around_guarded_syncs(body: Iterable[Instruction | str]) -> Iterator[Instruction | str]:
    """``@p shfl.sync`` -> a branch around it: only the threads with p arrive at the instruction."""
    for item in body:
        if isinstance(item, str) or item.guard is None or not _waits(item):
            yield item
            continue
        register, negated = item.guard
        label = f"after line {item.line} {id(item)}"
        where = (item.line, item.source, item.text)
        yield Instruction("bra", (), (Symbol(label),), (register, not negated), *where)
        yield Instruction(item.opcode, item.modifiers, item.operands, None, *where)
        yield label


def _waits(instruction: Instruction) -> bool:
    return is_warp_sync(instruction) or is_barrier(instruction) or is_phase_test(instruction)


def _cut(body: Iterable[Instruction | str]) -> tuple[list[Block], dict[str, int]]:
    current = Block(0)
    blocks, labels = [current], {}

    def start() -> Block:
        blocks.append(Block(len(blocks)))
        return blocks[-1]

    for item in body:
        if isinstance(item, str):
            current = start() if current.instructions else current
            labels[item] = current.index
            continue
        if is_warp_sync(item):
            mask = member_mask(item)
            together = 0 if mask is not None else WARPGROUP if item.opcode in _WARPGROUP_SYNC else WARP
            if not together or together > current.together:
                current = start() if current.instructions else current
                current.member_mask, current.together = mask, together
        current.instructions.append(item)
        end = _end(item)
        if end:
            current.end = end
            current = start()
    if not current.instructions and current.index not in labels.values() and len(blocks) > 1:
        blocks.pop()
    return blocks, labels


def _end(instruction: Instruction) -> str | None:
    match instruction.opcode:
        case "bra":
            return "branch" if instruction.guard else "jump"
        case "brx":
            return "switch"
        case "ret" | "exit":
            return "exit"
        case "trap":
            return "trap"
    if is_phase_test(instruction):
        return "phase"
    return "barrier" if is_barrier(instruction) else None


def registers_of(operand: Operand | None) -> tuple[str, ...]:
    """Names of the registers in an operand."""
    match operand:
        case Register():
            return (operand.name,)
        case Vector():
            return tuple(name for item in operand.items for name in registers_of(item))
        case Address():
            return registers_of(operand.base)
        case TensorAddress():
            return registers_of(operand.map) + registers_of(operand.coordinates)
        case Negated():
            return registers_of(operand.operand)
        case Pair():
            return registers_of(operand.first) + registers_of(operand.second)
    return ()


def definitions_and_uses(instruction: Instruction) -> tuple[set[str], set[str]]:
    """Registers written and read. A guarded write keeps the old value in the other lanes, so it reads it too."""
    operands = instruction.operands
    has_destination = bool(operands) and not isinstance(operands[0], Address)
    if instruction.opcode in _NO_DESTINATION:
        has_destination &= is_barrier(instruction) and "red" in instruction.modifiers
    defined = set(registers_of(operands[0])) if has_destination else set()
    used = {name for operand in operands[has_destination:] for name in registers_of(operand)}
    if instruction.opcode == "wgmma":
        used |= defined  # it adds to its result
    if instruction.guard:
        used |= {instruction.guard[0].name} | defined
    return defined, used


def successors(block: Block, count: int) -> list[int]:
    """Blocks that may follow, of ``count`` blocks."""
    falls = block.end in ("next", "branch", "barrier", "phase") or (
        block.end == "exit" and block.instructions[-1].guard is not None
    )
    return block.targets + ([block.index + 1] if falls and block.index + 1 < count else [])


def _liveness(blocks: list[Block]) -> None:
    for block in blocks:
        block.accesses = [definitions_and_uses(instruction) for instruction in block.instructions]
        for defined, used in block.accesses:
            block.used |= used - block.defined
            block.defined |= defined
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks):
            out = set().union(*(blocks[s].live_in for s in successors(block, len(blocks))))
            live = block.used | (out - block.defined)
            if out != block.live_out or live != block.live_in:
                block.live_out, block.live_in, changed = out, live, True
