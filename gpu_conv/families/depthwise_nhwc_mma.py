"""Host half of ``kernels/depthwise_nhwc_mma.cu``: channels last, on the tensor cores, 16-bit floats."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import NamedTuple

from ..launch import Launch, Target, pack, struct
from ..problem import ConvProblem
from . import Row, depthwise_common
from .depthwise_common import ctypes
from .direct import INT32_LIMIT, activation_parameters

PARAMS = struct(
    "DepthwiseNhwcMmaParams",
    [
        ("w_group", "int64"),
        *((name, "float64") for name in ("alpha", "beta")),
        *((name, "int32") for name in ("w_row", "w_column", "channels")),
        *((name, "int32", 2) for name in ("in", "out", "padding")),
        *((name, "int32") for name in ("images", "bands", "rows", "streams", "strips", "channel_blocks")),
        *((name, "int32") for name in ("column_tiles", "stages", "stage_rows", "pitch", "plane")),
    ],
)

CHANNELS = 8  # kChannels: of a group
STRIP = 8  # kStrip: columns
LINE = 16  # kLine: bytes
STAGES = 4  # kMostStages
REGISTERS = 65536  # of a multiprocessor
MOST_BLOCKS = 16  # of a multiprocessor of sm_86; others hold more
LARGEST = 7  # filter: one register per tap


class Tile(NamedTuple):
    """Outputs of one block, at most.

    Attributes:
        groups: of 8 channels.
        strips: of 8 columns; an odd number takes two bands or images, so that every product has 16 pixels.
        rows: of a band.
    """

    groups: int
    strips: int
    rows: int


TILES = (
    Tile(4, 4, 14),
    Tile(4, 4, 28),
    Tile(4, 4, 7),
    Tile(4, 2, 14),
    Tile(4, 2, 28),
    Tile(4, 2, 7),
    Tile(2, 4, 14),
    Tile(2, 4, 28),
    Tile(2, 4, 7),
    Tile(2, 7, 14),
    Tile(2, 7, 7),
    Tile(8, 2, 14),
    Tile(8, 2, 7),
)

# Estimates, none of them fitted to a measurement. Instructions of a warp: for 32 copies, for a step of its walk beside
# products and reads of fragments, to begin (and for each tap); instructions per clock of a multiprocessor.
_COPY, _STEP, _BEGIN, _TAP, _ISSUE = 9, 27, 250, 3, 2.4
# Clocks: of 16 bytes copied from the second-level cache, of a step that waits for nothing but itself, of a block that
# waits for memory.
_CACHE, _ALONE, _MEMORY = 0.4, 250, 1500


@dataclass(frozen=True)
class _Cut:
    """A problem cut into blocks of one tile."""

    p: ConvProblem
    tile: Tile

    @cached_property
    def column_tiles(self) -> int:
        return ceil(ceil(self.p.out_spatial[1] / STRIP) / self.tile.strips)

    @cached_property
    def strips(self) -> int:
        return ceil(ceil(self.p.out_spatial[1] / STRIP) / self.column_tiles)

    @cached_property
    def bands(self) -> int:
        return ceil(self.p.out_spatial[0] / self.tile.rows)

    @cached_property
    def rows(self) -> int:
        return ceil(self.p.out_spatial[0] / self.bands)

    @property
    def all_streams(self) -> int:
        return self.p.batch * self.bands

    @property
    def streams(self) -> int:
        return min(1 + self.strips % 2, self.all_streams)

    @property
    def channel_blocks(self) -> int:
        return ceil(self.p.groups // CHANNELS / self.tile.groups)

    @property
    def groups(self) -> int:
        return ceil(self.p.groups // CHANNELS / self.channel_blocks)

    @property
    def tiles(self) -> int:
        """Products side by side: of 16 pixels, of one group."""
        return ceil(self.streams * self.strips / 2)

    @property
    def threads(self) -> int:
        return 32 * self.groups * self.tiles

    @property
    def blocks(self) -> int:
        return ceil(self.all_streams / self.streams) * self.column_tiles * self.channel_blocks

    @property
    def in_rows(self) -> int:
        return (self.rows - 1) * self.p.strides[0] + self.p.filter[0]

    @property
    def in_columns(self) -> int:
        return (self.strips * STRIP - 1) * self.p.strides[1] + self.p.filter[1]

    @property
    def pitch(self) -> int:
        """Bytes of a row. With stride 2 half of them are odd columns, whose copies then go to other banks."""
        if self.p.strides[1] == 1:
            return self.in_columns * LINE
        half = ceil(self.in_columns / 2)
        return 2 * (half + (4 // self.groups - half) % (8 // self.groups)) * LINE

    @property
    def plane(self) -> int:
        """Bytes of a group; copies of neighbouring groups of a pixel then go to different banks."""
        lines = self.streams * self.in_rows * self.pitch // LINE
        return (lines + (8 // self.groups - lines) % 8) * LINE

    @property
    def shared_bytes(self) -> int:
        return self.groups * self.plane

    @property
    def step(self) -> int:
        """Input rows that the walk is unrolled over: kInputs."""
        return self.live * self.p.strides[0]

    @property
    def stage_rows(self) -> int:
        return ceil(ceil(self.in_rows / STAGES) / self.step) * self.step

    @property
    def live(self) -> int:
        """Output rows that an input row feeds: kLive."""
        return ceil(self.p.filter[0] / self.p.strides[0])

    @cached_property
    def resident(self) -> int:
        """Blocks per multiprocessor that registers allow: filter, sums, fragments and the rest of a thread."""
        rest = (37 if self.p.residual is None else 53) + 4 * (self.p.strides[0] - 1)
        registers = self.p.filter[0] * self.p.filter[1] + 4 * self.live + 2 * self.p.filter[1] + rest
        warps = 4 * (REGISTERS // 128 // (ceil(registers / 8) * 8))  # each quarter of a multiprocessor has its own
        return max(1, min(warps * 32 // self.threads, MOST_BLOCKS))

    def clocks(self, target: Target) -> float:
        """What the busiest multiprocessor takes: instructions and copies of all its blocks, or waves of lone walks."""
        pairs = ceil(self.p.filter[1] / 2)
        steps = self.rows + self.live - 1
        walk = steps * (_STEP + self.p.strides[0] * pairs + self.p.filter[0] * pairs)
        copies = self.streams * self.in_rows * self.in_columns * self.groups
        instructions = self.groups * self.tiles * (walk + _BEGIN + _TAP * self.p.filter[0] * self.p.filter[1])
        one = max((instructions + copies / 32 * _COPY) / _ISSUE, copies * _CACHE)
        together = min(self.resident, max(1, target.shared_per_block // self.shared_bytes))
        blocks = ceil(self.blocks / target.multiprocessors)
        return max(blocks * one, ceil(blocks / together) * (_MEMORY + steps * _ALONE))


def tiles(p: ConvProblem, target: Target) -> list[Tile]:
    """The fewest clocks first, of equal ones the first in ``TILES``; last those that leave a second block no room."""
    cuts = {(c.groups, c.strips, c.rows): c for c in (_Cut(p, t) for t in reversed(TILES))}
    fitting = [c for c in reversed(cuts.values()) if c.shared_bytes <= target.shared_per_block]
    alone = target.shared_per_block // 2
    return [c.tile for c in sorted(fitting, key=lambda c: (c.shared_bytes > alone, c.clocks(target)))]


def refuses(p: ConvProblem, target: Target) -> str | None:
    """Why the kernel cannot run the problem, or None."""
    if reason := depthwise_common.refuses(p):
        return reason
    if p.x.dtype not in ("float16", "bfloat16"):
        return f"x is {p.x.dtype}; the products of depthwise_nhwc_mma take float16 and bfloat16"
    if target.capability < 80:
        return f"asynchronous copies need compute capability 8.0, {target.arch} has less"
    if p.rank != 2 or p.out_per_group != 1:
        return f"has 2 spatial axes and 1 output per group; got {p.rank} and {p.out_per_group}"
    if p.strides not in ((1, 1), (2, 2)) or set(p.dilations) != {1}:
        return f"strides are 1 or 2, the same for rows and columns, undilated: got {p.strides}, dilated {p.dilations}"
    if max(p.filter) > LARGEST:
        return f"the filter is {p.filter}; depthwise_nhwc_mma keeps up to {LARGEST}x{LARGEST} taps in registers"
    if p.groups % CHANNELS:
        return f"multiplies {CHANNELS} channels at a time, {p.groups} are no multiple of that"
    for name, tensor in (("x", p.x), ("y", p.y), ("residual", p.residual)):
        if tensor is not None and not (tensor.channels_last and tensor.align >= LINE):
            return f"{name} is not dense with channels last and aligned to {LINE} bytes (strides {tensor.strides})"
    # Rows and columns beyond the image are addressed but not read.
    reach = [n + 2 * max(map(abs, pair)) + 1024 for n, pair in zip(p.in_spatial, p.padding, strict=True)]
    taps = max(abs(n * s) for n, s in zip(p.filter, p.w.strides[3:], strict=True))
    if max(taps, reach[0] * reach[1] * p.groups, p.y.size // p.batch, p.y.size // 64) >= INT32_LIMIT:
        return "x or y has too many elements for 32-bit offsets"
    if not tiles(p, target):
        return f"a block needs more shared memory than the {target.shared_per_block} bytes of the device"
    return None


def plan(p: ConvProblem, target: Target, tile: Tile | None = None) -> Launch:
    """The launch for a problem with at least one output element, with the cheapest tile or with a given one."""
    cut = _Cut(p, tile or tiles(p, target)[0])
    code, alpha, beta = activation_parameters(p.activation, p.accumulate)
    params = pack(
        PARAMS,
        w_group=p.w.strides[0],
        w_row=p.w.strides[3],
        w_column=p.w.strides[4],
        alpha=alpha,
        beta=beta,
        channels=p.groups,
        out=p.out_spatial,
        padding=[lo for lo, _ in p.padding],
        images=p.batch,
        bands=cut.bands,
        rows=cut.rows,
        streams=cut.streams,
        strips=cut.strips,
        channel_blocks=cut.channel_blocks,
        column_tiles=cut.column_tiles,
        stages=ceil(cut.in_rows / cut.stage_rows),
        stage_rows=cut.stage_rows,
        pitch=cut.pitch,
        plane=cut.plane,
        **{"in": p.in_spatial},
    )
    sizes = (*p.filter, p.strides[0], cut.groups, cut.tiles)
    return Launch(
        source="depthwise_nhwc_mma.cu",
        kernel="depthwise_nhwc_mma",
        template=(*ctypes(p), *sizes, p.residual is not None, code, cut.resident),
        grid=(cut.blocks, 1, 1),
        block=(cut.threads, 1, 1),
        params=params,
        shared_bytes=cut.shared_bytes,
    )


ROWS = (Row("depthwise_nhwc_mma", refuses, plan, tiles),)
