"""Counters: what a launch executed and moved, exact for the PTX as written (no cache, no ptxas)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .ir import Instruction
from .lanes import WARP, Lanes, Value

Keys = npt.NDArray[Any]
_SPECIAL_FUNCTIONS = frozenset(["ex2", "lg2", "sin", "cos", "tanh", "rcp", "rsqrt", "sqrt", "div"])
_CONTROL = frozenset(["bra", "brx", "ret", "exit", "trap", "bar", "barrier", "membar", "fence", "nanosleep"])
_CONTROL |= {"setmaxnreg", "elect"}
_MOVES = frozenset(["mov", "cvta", "selp", "prmt"])


def instruction_class(instruction: Instruction) -> str:
    """The row of the instruction table that an instruction belongs to."""
    opcode, modifiers = instruction.opcode, instruction.modifiers
    if opcode in ("ld", "ldu", "st"):
        spaces = [m.split("::")[0] for m in modifiers]
        space = next((s for s in spaces if s in ("global", "shared", "local", "param", "const")), "generic")
        return f"{'st' if opcode == 'st' else 'ld'}.{space}"
    if "bulk" in modifiers:
        return "bulk copy" if modifiers[-1] not in ("commit_group", "wait_group", "read") else "control"
    if opcode in ("mbarrier", "wgmma"):
        return "control" if modifiers[0] in ("fence", "commit_group", "wait_group") else opcode
    if opcode == "cp":
        return "cp.async" if modifiers[-1] not in ("commit_group", "wait_all", "wait_group") else "control"
    if opcode in ("atom", "red"):
        return "atomic"
    if opcode in ("mma", "ldmatrix", "cvt"):
        return opcode
    if opcode in ("shfl", "vote", "match", "redux", "activemask"):
        return "shuffle"
    if opcode in _CONTROL:
        return "control"
    if opcode in _MOVES:
        return "move"
    types = instruction.types
    if opcode in ("setp", "set") or (types and types[-1] == "pred"):
        return "predicate"
    if types and types[-1] in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2"):
        return "special function" if opcode in _SPECIAL_FUNCTIONS else types[-1]
    return "integer"


@dataclass
class AccessCounter:
    """One memory instruction.

    Attributes:
        requests: warps that executed it.
        lanes: threads that did.
        bytes: bytes that those threads asked for.
        sectors: 32-byte sectors of global memory, counted per request.
        wavefronts: passes through shared memory; ``ideal_wavefronts`` without bank conflicts.
    """

    instruction: Instruction
    kind: str = ""
    requests: int = 0
    lanes: int = 0
    bytes: int = 0
    sectors: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0


@dataclass
class Traffic:
    """Distinct bytes of one allocation that were touched, in whole 32-byte sectors."""

    read: int
    written: int


@dataclass
class Counters:
    """Totals of a launch.

    Attributes:
        thread_instructions, warp_instructions: executed PTX instructions; an instruction that was switched off by
            its guard counts.
        classes: thread instructions by class.
        opcodes: thread instructions by full opcode.
        mma: ``mma.sync`` instructions (per warp).
        wgmma: ``wgmma.mma_async`` instructions (per warpgroup) by shape and types, ``"m64n128k16.f16.f16"``.
        macs: multiply-adds of both.
        accesses: one entry per memory instruction that was executed.
        traffic: distinct bytes per allocation.
        divergent_branches: branches at which a chunk split (0 for a kernel without divergence).
        blocks_covered, block_count: basic blocks that were executed at least once, of how many.
        uncovered: CUDA lines of blocks that were never executed.
    """

    thread_instructions: int = 0
    warp_instructions: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    opcodes: Counter[str] = field(default_factory=Counter)
    mma: int = 0
    macs: int = 0
    wgmma: Counter[str] = field(default_factory=Counter)
    accesses: list[AccessCounter] = field(default_factory=list)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    divergent_branches: int = 0
    blocks_covered: int = 0
    block_count: int = 0
    uncovered: list[str] = field(default_factory=list)

    def total(self, attribute: str, *kinds: str) -> int:
        """Sum of one attribute over the memory instructions of these kinds, for example ``"ld.global"``."""
        return sum(getattr(a, attribute) for a in self.accesses if a.kind in kinds)

    @property
    def simt_efficiency(self) -> float:
        """Active lanes per executed warp instruction, 1 without divergence."""
        return self.thread_instructions / max(1, WARP * self.warp_instructions)

    @property
    def load_sectors_per_request(self) -> float:
        kinds = ("ld.global", "cp.async.global")
        return self.total("sectors", *kinds) / max(1, self.total("requests", *kinds))

    @property
    def store_sectors_per_request(self) -> float:
        return self.total("sectors", "st.global") / max(1, self.total("requests", "st.global"))

    @property
    def wgmma_flops(self) -> dict[str, int]:
        """Floating-point (or integer) operations of ``wgmma`` by shape and types, two per multiply-add."""
        sizes = {name: prod(int(n) for n in re.findall(r"[mnk](\d+)", name.split(".")[0])) for name in self.wgmma}
        return {name: 2 * sizes[name] * count for name, count in self.wgmma.items()}

    @property
    def bank_conflict_factor(self) -> float:
        """Wavefronts of shared memory over those without conflicts; 1 is perfect."""
        return sum(a.wavefronts for a in self.accesses) / max(1, sum(a.ideal_wavefronts for a in self.accesses))

    @property
    def bytes_read(self) -> int:
        return sum(t.read for t in self.traffic.values())

    @property
    def bytes_written(self) -> int:
        return sum(t.written for t in self.traffic.values())

    def bank_conflicts(self) -> list[AccessCounter]:
        """Shared-memory instructions with conflicts, worst first."""
        bad = [a for a in self.accesses if a.wavefronts > a.ideal_wavefronts]
        return sorted(bad, key=lambda a: a.ideal_wavefronts - a.wavefronts)

    def __str__(self) -> str:
        loads = self.total("sectors", "ld.global", "cp.async.global")
        wanted = self.total("bytes", "ld.global", "cp.async.global")
        classes = ", ".join(f"{name} {count}" for name, count in self.classes.most_common())
        bulk = "cp.async.bulk.shared"
        copies = self.total("requests", bulk)
        wgmma = "".join(f", {count} wgmma {name}" for name, count in self.wgmma.items())
        rows = [
            f"instructions: {self.thread_instructions} per thread, {self.warp_instructions} per warp"
            f" (SIMT efficiency {self.simt_efficiency:.3f}); {classes}",
            f"global: {self.load_sectors_per_request:.2f} sectors per load request"
            f" ({wanted / max(1, 32 * loads):.2f} bytes used per byte fetched),"
            f" {self.store_sectors_per_request:.2f} per store request;"
            f" {self.bytes_read} distinct bytes read, {self.bytes_written} written",
            f"shared: {sum(a.wavefronts for a in self.accesses)} wavefronts,"
            f" {self.bank_conflict_factor:.2f} x the conflict-free number",
            *([f"bulk copies: {copies}, {self.total('bytes', bulk)} bytes of shared memory"] if copies else []),
            f"mma: {self.mma} instructions{wgmma}, {self.macs} multiply-adds",
            f"control: {self.divergent_branches} divergent branches,"
            f" {self.blocks_covered} of {self.block_count} basic blocks covered",
        ]
        return "\n".join(rows)


def count_distinct(keys: Value, lanes: Lanes, requests: int) -> int:
    """Number of distinct (warp, key) pairs. ``keys`` holds the active lanes only; a scalar is one per warp."""
    if np.ndim(keys) == 0:
        return requests
    if lanes is None or lanes.whole_warps:
        rows = keys.reshape(-1, WARP)
        left, right = rows[:, :-1], rows[:, 1:]
        changes = int(np.count_nonzero(left != right))
        if changes and bool((right < left).any()):
            rows = np.sort(rows, axis=1)
            changes = int(np.count_nonzero(rows[:, 1:] != rows[:, :-1]))
        return len(rows) + changes
    warp = lanes.indices >> 5
    new_warp = warp[1:] != warp[:-1]
    if bool(((keys[1:] < keys[:-1]) & ~new_warp).any()):
        order = np.lexsort((keys, warp))
        keys = keys[order]
    return 1 + int(np.count_nonzero((keys[1:] != keys[:-1]) | new_warp))


def count_wavefronts(addresses: Value, size: int, lanes: Lanes, requests: int) -> tuple[int, int]:
    """Wavefronts of a shared-memory access and their number without conflicts.

    32 banks of 4 bytes: a warp needs one pass for words of up to 4 bytes, two half-warps for 8, four quarters
    for 16; lanes that read the same word share it.
    """
    width = max(4, size)
    group = 128 // width  # lanes served together, and the number of banks of that width
    if np.ndim(addresses) == 0:
        return requests, requests
    words = addresses // width
    if lanes is None or lanes.whole_warps:
        rows = words.reshape(-1, group)
        return _passes(rows), len(rows)
    owner = lanes.indices // group
    keys = np.unique((owner << 32) | words)
    owner, bank = keys >> 32, keys & (group - 1)
    slots, counts = np.unique(owner * group + bank, return_counts=True)
    first = np.flatnonzero(np.r_[True, slots[1:] // group != slots[:-1] // group])
    return int(np.maximum.reduceat(counts, first).sum()), len(first)


def _passes(rows: Keys) -> int:
    group = rows.shape[1]
    banks = np.bitwise_or.reduce(np.int64(1) << (rows & (group - 1)), axis=1)
    easy = (np.bitwise_count(banks) == group) | (rows == rows[:, :1]).all(axis=1)
    passes = int(np.count_nonzero(easy))
    if passes == len(rows):
        return passes
    hard = np.sort(rows[~easy], axis=1)
    fresh = np.ones(hard.shape, np.bool_)
    fresh[:, 1:] = hard[:, 1:] != hard[:, :-1]
    slot = np.arange(len(hard))[:, None] * group + (hard & (group - 1))
    counts = np.bincount(slot[fresh], minlength=len(hard) * group).reshape(-1, group)
    return passes + int(counts.max(axis=1).sum())
