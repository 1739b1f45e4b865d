"""What generated code and the scheduler say about an instruction."""

from __future__ import annotations

from dataclasses import dataclass

from .ir import Instruction


@dataclass(frozen=True, eq=False)
class Site:
    """A place in the program that touches memory: what findings and counters refer to."""

    index: int
    instruction: Instruction
    kind: str


@dataclass(frozen=True)
class Barrier:
    """What a block barrier needs besides waiting: the reduction of ``bar.red`` and the register for its result."""

    number: int
    aligned: bool
    reduction: str | None = None
    target: int = -1


@dataclass(frozen=True)
class PhaseTest:
    """``mbarrier.test_wait`` or ``try_wait``.

    Attributes:
        offset: added to the address.
        parity: the operand is the parity of a phase, not what an arrival returned.
        acquire: success orders memory.
        target: number of the predicate register for the answer.
    """

    site: Site
    offset: int
    parity: bool
    acquire: bool
    target: int
