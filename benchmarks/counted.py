"""What a kernel does on one layer: registers of the compiler, the rest counted while its PTX runs in the emulator.

Counted is one multiprocessor's share of the layer: fewer images, channels of their own or rows, planned for a device of
as many multiprocessors less, so that the instantiation, the tiles of a block and its rounds stay those of the layer.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from math import prod

import numpy as np
from rows import Layer, measured, measured_batch, problem, title

from gpu_conv import dispatch, stand_in
from gpu_conv.cuda.compiler import Compiled, compile_launch
from gpu_conv.cuda.resources import occupancy
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import Emulator
from gpu_conv.emulator.counters import Counters
from gpu_conv.launch import Launch, Target
from gpu_conv.problem import ConvProblem

FEWEST_CHANNELS = (32, 128)  # of a share, channels first and last: a block takes up to 128 of the latter
FEWEST = {1: (256,), 2: (14, 7), 3: (4, 14, 7)}  # rows, by spatial axes; the last axis of maps stays as it is, and
# the maps of kernels that walk down them
ENOUGH_OUTPUTS = 60_000  # of a share of a layer that is larger by far
LOADS = ("ld.global", "cp.async.global")
_FUSED = ("fma.rn.f32", "fma.rn.f16x2", "fma.rn.bf16x2")


@dataclass(frozen=True)
class Case:
    """A row of ``layers.json`` in one dtype and layout on one architecture, as the table runs it."""

    row: Layer
    dtype: str
    last: bool
    arch: str

    @property
    def target(self) -> Target:
        return KNOWN_TARGETS[self.arch]

    @property
    def problem(self) -> ConvProblem:
        return measured(self.row, self.dtype, self.last)

    @property
    def launch(self) -> Launch:
        return dispatch.plan(self.problem, self.target)

    @property
    def name(self) -> str:
        return f"{title(self.row)} {self.dtype} {'nhwc' if self.last else 'nchw'} {self.arch}"


@dataclass(frozen=True)
class Share:
    """A part of a layer that the same instantiation computes, and its part of the layer's products."""

    problem: ConvProblem
    launch: Launch
    part: float
    arch: str

    @cached_property
    def ptx(self) -> str:
        """What the emulator runs, without version, architecture and source lines."""
        ptx = compile_launch(self.launch, self.arch).ptx
        return re.sub(r"(?m)^\s*(\.(version|target|loc|file)|//).*\n", "", ptx).partition("\t.section")[0]

    @cached_property
    def digest(self) -> str:
        """Of all that the counts depend on but the emulator."""
        launch, problem = self.launch, self.problem
        facts = (self.ptx, launch.params, launch.grid, launch.shared_bytes, problem.x, problem.w, problem.y)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Compilation:
    """What the compiler says.

    Attributes:
        registers, spill_bytes, local_bytes: per thread.
        blocks: per multiprocessor.
        shrunk: machine instructions for one of the PTX, at most 1: where there are more, ptxas has unrolled loops.
    """

    registers: int
    spill_bytes: int
    local_bytes: int
    blocks: int
    shrunk: float


@dataclass(frozen=True)
class Counts:
    """Per output unless said otherwise.

    Attributes:
        issued: instructions of the PTX, 32 for each of a warp.
        ffma, mma: multiply-adds of the ordinary and of the tensor cores.
        wide_loads: share of the bytes loaded from global memory by 128-bit accesses.
        load_sectors, store_sectors: sectors of 32 bytes per request to global memory.
        shared: wavefronts of shared memory; ``wavefronts``: per request to it; ``conflicts``: over those without bank
            conflicts.
        dram: distinct bytes touched over the fewest possible; ``l2``: bytes of all requests over these.
    """

    issued: float
    ffma: float
    mma: float
    wide_loads: float
    load_sectors: float
    store_sectors: float
    shared: float
    wavefronts: float
    conflicts: float
    dram: float
    l2: float


def compilation(share: Share) -> Compilation:
    """Compile, or read from the disk cache."""
    launch, compiled = share.launch, compile_launch(share.launch, share.arch)
    shared = compiled.shared_bytes + launch.shared_bytes
    blocks = occupancy(share.arch, launch.threads, compiled.registers, shared).blocks
    shrunk = round(min(1.0, machine_instructions(compiled) / ptx_instructions(compiled)), 3)
    return Compilation(compiled.registers, compiled.spill_bytes, compiled.local_bytes, blocks, shrunk)


def counts(share: Share) -> Counts:
    """Run in the emulator and count."""
    counters = _run(share)
    outputs, fewest = share.problem.y.size, share.problem.bytes
    sectors = counters.total("sectors", *LOADS, "st.global")
    shared = [a for a in counters.accesses if a.ideal_wavefronts]
    wavefronts = sum(a.wavefronts for a in shared)
    return Counts(
        issued=counters.warp_instructions * 32 / outputs,
        ffma=sum(counters.opcodes[name] for name in _FUSED) / outputs,
        mma=counters.macs / outputs,
        wide_loads=_wide_loads(counters),
        load_sectors=counters.load_sectors_per_request,
        store_sectors=counters.store_sectors_per_request,
        shared=wavefronts / outputs,
        wavefronts=wavefronts / max(1, sum(a.requests for a in shared)),
        conflicts=counters.bank_conflict_factor if shared else 1.0,
        dram=(counters.bytes_read + counters.bytes_written) / fewest,
        l2=32 * sectors / fewest,
    )


def _run(share: Share) -> Counters:
    (operands,) = stand_in.operand_sets(share.problem, np, 1)
    return Emulator(share.arch).run(share.launch, operands.arrays).counters


def _wide_loads(counters: Counters) -> float:
    loads = [a for a in counters.accesses if a.kind in LOADS]
    wide = sum(a.bytes for a in loads if a.bytes > 8 * a.lanes)
    return wide / max(1, sum(a.bytes for a in loads))


def ptx_instructions(compiled: Compiled) -> int:
    """Instructions in the PTX of a kernel: one statement each."""
    return len(re.findall(r"(?m)^\s+(?:@!?%p\d+\s+)?[a-z][^;]*;", compiled.ptx))


def machine_instructions(compiled: Compiled) -> int:
    """Instructions of 16 bytes in the code sections of a cubin, padding included."""
    (table,) = struct.unpack_from("<Q", compiled.cubin, 40)
    entry, count, names = struct.unpack_from("<HHH", compiled.cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", compiled.cubin, table + i * entry) for i in range(count)]
    start = sections[names][4]
    return sum(size // 16 for name, *_, size in sections if compiled.cubin[start + name :].startswith(b".text."))


# ------------------------------------------------------------------------------------------------------------- a share


def share_of(case: Case) -> Share:
    """The cheapest share that the layer's instantiation computes; the layer itself where there is none."""
    whole, target, launch = case.problem, case.target, case.launch
    chosen = dispatch.select(whole, target)
    tile = next(iter(chosen.tiles(whole, target)), None)
    plan = partial(chosen.plan, tile=tile) if tile else chosen.plan
    for row, batch, part in _parts(case):
        p = problem(row, case.dtype, case.last, batch, bias=case.dtype)
        if part * target.multiprocessors < 0.75 and p.y.size < ENOUGH_OUTPUTS:
            continue
        for few in _devices(target, part):
            if chosen.refuses(p, few) is None and (found := plan(p, few)).name_expression == launch.name_expression:
                return Share(p, found, part, case.arch)
    return Share(whole, launch, 1.0, case.arch)


def _devices(target: Target, part: float) -> Iterator[Target]:
    """Devices with that part of the multiprocessors, about: bands are a matter of waves, and these are whole."""
    wanted = max(1, round(part * target.multiprocessors))
    for count in dict.fromkeys((wanted, wanted + 1, max(1, wanted - 1), 2 * wanted, -(-wanted // 2))):
        yield replace(target, multiprocessors=count)


def _parts(case: Case) -> Iterator[tuple[Layer, int, float]]:
    """Smaller layers, their batch, and their part of the whole one's products: the smallest first."""
    row, batch = case.row, measured_batch(case.row, case.dtype)
    sizes = [_halves(n, least) for n, least in zip(row["in_spatial"], FEWEST[row["nd"]], strict=True)]
    sizes[1:] = [*sizes[1:-1], row["in_spatial"][-1:]] if row["nd"] > 1 else []
    # All rows where bands of them are walked; a long filter would find most of a lower map in its padding.
    if row["cls"] == "depthwise" and row["nd"] == 2 and (not case.last or max(row["filter"]) > 7):
        sizes[0] = row["in_spatial"][:1]
    images = _halves(batch, min(batch, _fewest_images(row, case.last)))
    least = max(1, FEWEST_CHANNELS[case.last] * row["groups"] // row["C"])
    groups, filters = _halves(row["groups"], least), [row["K"]]
    if row["groups"] == 1:
        filters = _halves(row["K"], 128)
    found = []
    for n, g, k, *spatial in product(images, groups, filters, *sizes):
        part = n / batch * g / row["groups"] * k / row["K"] * prod(spatial) / prod(row["in_spatial"])
        changed = {"groups": g, "C": row["C"] * g // row["groups"], "K": k * g // row["groups"], "in_spatial": spatial}
        bent = (g != row["groups"]) + (k != row["K"]) + (spatial != row["in_spatial"])
        found.append((part * 1.5**bent, row | changed, n, part))
    yield from (rest for _, *rest in sorted(found, key=lambda one: one[0]))  # type: ignore[misc]


def _fewest_images(row: Layer, last: bool) -> int:
    """Kernels for small maps compute several images at a time: that many columns of all together."""
    if row["cls"] == "depthwise":
        columns = 0 if last or row["nd"] == 3 else 224 if row["nd"] == 2 else 8 * row["in_spatial"][0]
    else:
        columns = 64 if row["cls"] in ("dense", "grouped") else 0
    return max(1, columns // int(row["in_spatial"][-1]))


def _halves(size: int, least: int) -> list[int]:
    """The size, about half of it, a quarter ... not below ``least``: an odd size keeps its place between vectors."""
    found = [size]
    while True:
        half = found[-1] // 2 if found[-1] % 2 == 0 else found[-1] - found[-1] // 2 // 64 * 64
        if half < least or half == found[-1]:
            return found
        found.append(half)
