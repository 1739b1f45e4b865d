"""Which instructions could touch a register of a ``wgmma`` in flight, or of one that no fence protects.

Worked out before a kernel runs, along all paths of its code; :class:`flights.Flights` then looks at what is executed.
"""

from __future__ import annotations

from .cfg import Block, definitions_and_uses, registers_of, successors
from .ir import Immediate, Instruction, Register, Vector

_OLDEST = 9  # commits after which their number no longer matters
State = dict[str, int]  # register -> commits since its product


def _is(instruction: Instruction, action: str) -> bool:
    return instruction.opcode == "wgmma" and instruction.modifiers[0] == action


def is_move(instruction: Instruction) -> bool:
    """A plain copy of one register."""
    operands = instruction.operands
    return instruction.opcode == "mov" and len(operands) == 2 and all(isinstance(o, Register) for o in operands)


def _names(move: Instruction) -> tuple[str, str]:
    target, source = (o.name for o in move.operands if isinstance(o, Register))
    return target, source


def _of_product(instruction: Instruction) -> list[str]:
    """The accumulator registers, and those of A if it is in registers."""
    d, a = instruction.operands[:2]
    return [*registers_of(d), *(registers_of(a) if isinstance(a, Vector) else ())]


class Hazards:
    """What may be in flight before each instruction of a kernel.

    Attributes:
        touched: id of an instruction -> registers in flight that it may use.
        unfenced: id of a ``wgmma.mma_async`` -> its registers that may have been used since the last fence.
    """

    def __init__(self, blocks: list[Block]) -> None:
        products = [i for b in blocks for i in b.instructions if _is(i, "mma_async")]
        self.registers = {r for i in products for r in _of_product(i)}
        self.touched: dict[int, list[str]] = {}
        self.unfenced: dict[int, list[str]] = {}
        if not products:
            return
        copies = [_names(i) for b in blocks for i in b.instructions if is_move(i)]
        while more := {r for pair in copies for r in pair if self.registers & set(pair)} - self.registers:
            self.registers |= more
        states: dict[int, tuple[State, frozenset[str]]] = {0: ({}, frozenset())}
        work = [0]
        while work:
            index = work.pop()
            flying, dirty = dict(states[index][0]), set(states[index][1])
            for instruction in blocks[index].instructions:
                self._step(instruction, flying, dirty)
            for following in successors(blocks[index], len(blocks)):
                old = states.get(following)
                new = _merged(old, (flying, frozenset(dirty)))
                if new != old:
                    states[following] = new
                    work.append(following)
        for index, (flying, dirty_before) in states.items():
            flying, dirty = dict(flying), set(dirty_before)
            for instruction in blocks[index].instructions:
                self._note(instruction, flying, dirty)
                self._step(instruction, flying, dirty)

    def _note(self, instruction: Instruction, flying: State, dirty: set[str]) -> None:
        defined, used = definitions_and_uses(instruction)
        if _is(instruction, "mma_async"):
            self.unfenced[id(instruction)] = sorted(dirty & set(_of_product(instruction)))
        elif flying and (touched := sorted(flying.keys() & (defined | used))):
            self.touched[id(instruction)] = touched

    def _step(self, instruction: Instruction, flying: State, dirty: set[str]) -> None:
        """Change the state as the instruction does."""
        if instruction.opcode == "wgmma":
            match instruction.modifiers[0]:
                case "mma_async":
                    flying.update(dict.fromkeys(_of_product(instruction), 0))
                case "commit_group":
                    for register, age in flying.items():
                        flying[register] = min(age + 1, _OLDEST)
                case "wait_group":
                    (pending,) = instruction.operands
                    limit = pending.value if isinstance(pending, Immediate) else _OLDEST
                    for register in [r for r, age in flying.items() if age > limit]:
                        del flying[register]
                case "fence":
                    dirty.clear()
            return
        defined, used = definitions_and_uses(instruction)
        if is_move(instruction) and not instruction.guard:
            target, source = _names(instruction)
            flying.pop(target, None)
            if source in flying:
                flying[target] = flying[source]
            clean = source in self.registers and source not in dirty
            if clean:
                dirty.discard(target)
            elif target in self.registers:
                dirty.add(target)
        else:
            dirty |= (defined | used) & self.registers


def _merged(
    old: tuple[State, frozenset[str]] | None, new: tuple[State, frozenset[str]]
) -> tuple[State, frozenset[str]]:
    if old is None:
        return new
    flying = dict(old[0])
    for register, age in new[0].items():
        flying[register] = min(age, flying.get(register, age))
    return flying, old[1] | new[1]
