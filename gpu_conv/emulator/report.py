"""What a run found and counted."""

from __future__ import annotations

from dataclasses import dataclass, field

from .counters import Counters
from .ir import Instruction, SourceLine

Coordinates = tuple[int, int, int]


@dataclass
class Finding:
    """One thing that the kernel did wrong, at one instruction.

    Attributes:
        kind: what, in a few words that never change: ``"out of bounds"``, ``"shared race"``, ...
        message: the details of the first lane that did it.
        kernel: name of the kernel.
        source: CUDA source lines, innermost inlined function first; empty without ``-lineinfo``.
        ptx_line, instruction: the PTX statement; 0 and empty for findings about the whole launch.
        block, thread: indices of the first lane.
        address: the address that it used.
        lanes: how many lanes did it, over the whole launch.
    """

    kind: str
    message: str
    kernel: str
    source: tuple[SourceLine, ...] = ()
    ptx_line: int = 0
    instruction: str = ""
    block: Coordinates | None = None
    thread: Coordinates | None = None
    address: int | None = None
    lanes: int = 1

    @property
    def where(self) -> str:
        """``file:line``, inlined functions after it."""
        return " inlined at ".join(str(s) for s in self.source)

    def __str__(self) -> str:
        text = f"{self.kind}: {self.message}"
        if self.instruction:
            text += f"\n    at {self.where or self.kernel}, PTX line {self.ptx_line}: {self.instruction}"
        if self.block is not None:
            text += f"\n    block {self.block}, thread {self.thread}"
            text += f", address {self.address:#x}" if self.address is not None else ""
            text += f"; {self.lanes} lane{'s' if self.lanes > 1 else ''}"
        return text


@dataclass
class Report:
    """The result of one launch in the emulator.

    Attributes:
        kernel: name of the kernel.
        grid, block: the launch.
        findings: everything that is wrong; empty for a correct kernel.
        notes: harmless oddities, for example copies that nobody waited for.
        counters: instructions, memory traffic, bank conflicts, divergence, coverage.
        seed: seed of the schedule, ``None`` for the deterministic one.
        seconds: time spent in the emulator.
    """

    kernel: str
    grid: Coordinates
    block: Coordinates
    counters: Counters
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seed: int | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        schedule = "" if self.seed is None else f", seed {self.seed}"
        head = f"{self.kernel} <<<{self.grid}, {self.block}>>>{schedule}: "
        head += "clean" if self.ok else f"{len(self.findings)} finding{'s' if len(self.findings) > 1 else ''}"
        return "\n".join([head, *self._by_line(), *(f"note: {n}" for n in self.notes), str(self.counters)])

    def _by_line(self) -> list[str]:
        """The findings as text; an unrolled loop makes many of one source line, which are told once."""
        groups: dict[tuple[str, tuple[SourceLine, ...], int], list[Finding]] = {}
        for finding in self.findings:
            key = (finding.kind, finding.source, 0 if finding.source else finding.ptx_line)
            groups.setdefault(key, []).append(finding)
        rows = []
        for first, *others in groups.values():
            lanes = sum(f.lanes for f in others)
            more = f"\n    and {len(others)} more instructions of that line, {lanes} lanes" if others else ""
            rows.append(f"{first}{more}")
        return rows


class EmulationError(RuntimeError):
    """The kernel did something wrong. ``report`` holds every finding and the counters."""

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class Recorder:
    """Collects findings; one per kind and instruction, with the number of lanes."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.notes: dict[str, None] = {}  # a set that keeps its order
        self._findings: dict[tuple[str, int], Finding] = {}

    @property
    def findings(self) -> list[Finding]:
        return list(self._findings.values())

    def add_lanes(self, kind: str, instruction: Instruction | None, lanes: int) -> bool:
        """Count lanes towards a finding that exists already."""
        known = self._findings.get((kind, instruction.line if instruction else 0))
        if known:
            known.lanes += lanes
        return known is not None

    def add(
        self,
        kind: str,
        instruction: Instruction | None,
        message: str,
        *,
        block: Coordinates | None = None,
        thread: Coordinates | None = None,
        address: int | None = None,
        lanes: int = 1,
    ) -> None:
        line, text, source = (instruction.line, instruction.text, instruction.source) if instruction else (0, "", ())
        self._findings[kind, line] = Finding(
            kind, message, self.kernel, source, line, text, block, thread, address, lanes
        )
