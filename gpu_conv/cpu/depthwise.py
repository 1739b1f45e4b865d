"""Depthwise, channels last: ``np.einsum`` over blocks of rows.

einsum's inner loop is a fused ``out += a * b`` over the innermost contiguous axis: one pass per tap, no temporaries.
The innermost axis is a run of columns times channels, for which the weights are repeated along the columns, so that it
is long (about 1000 elements) even where channels are few, while the repeated weights of a tap stay in the L1 cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import gcd, prod
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .epilogue import Epilogue
from .prepared import Prepared, Step, not_a_gemm
from .scratch import Array, Workspace, aligned_copy
from .staging import Staged, Staging
from .views import strided, working_order

RUN = 512, 1536  # elements of the inner loop: 10 to 20 % faster than whole rows of 4000 to 10000
ROW = 8192  # elements of a row that is not cut if no cut is even: a second einsum costs more
BLOCK = 1 << 17  # elements of a block of rows: its epilogue finds it in the L2 cache
WIDE = 128  # channels from which planes are not worth the copy: 96 at 112x112 take 0.85 of the time with planes


@dataclass(frozen=True)
class _Piece:
    """One einsum: some output columns, the taps that read one plane."""

    columns: slice  # of the output
    run: int  # columns in the innermost axis
    plane: int
    first: int  # column of the plane that the first tap of output column 0 reads
    step: int  # columns of the plane between taps
    weights: Array  # (o, *taps, run * channels)
    adds: bool  # to the sum of another plane

    @property
    def blocks(self) -> int:
        width: int = self.columns.stop - self.columns.start
        return width // self.run


@dataclass(frozen=True)
class _Block:
    """Some outputs along the first of several spatial axes: an epilogue finds them, and they their input, in the cache.

    Attributes:
        rows: which; everything in one dimension.
        reads: rows of the padded input.
        staging: what pads them.
    """

    rows: slice
    reads: slice
    staging: Staging


class Depthwise(Prepared):
    """One input channel per group, channels last.

    Attributes:
        phases: planes that the input is split into: plane p holds the columns p, p + phases ...
    """

    name = "depthwise_rows"

    @classmethod
    def refuses(cls, problem: ConvProblem) -> str | None:
        if problem.in_per_group != 1 or problem.rank == 0:
            return "it needs one input channel per group and a spatial axis"
        return not_a_gemm(problem)

    def __init__(self, problem: ConvProblem, weights: Array, bias: Array | None, carrier: np.dtype[Any]) -> None:
        super().__init__(problem, weights, bias, carrier)
        channels, stride = problem.groups, problem.strides[-1]
        self.phases = stride if channels < WIDE else 1
        self._step = stride // self.phases  # columns of a plane between neighbouring outputs
        run = _run(problem.out_spatial[-1], channels) if self._step == 1 else 1
        self._pieces = list(_pieces(problem, weights, carrier, self.phases, run))
        biases = [None] * problem.out_per_group if bias is None else bias.reshape(channels, -1).T
        self._epilogues = [Epilogue(problem, b, carrier, channels_last=True) for b in biases]
        self._lead = problem.out_spatial[:-1] or (1,)
        self._subscripts = _subscripts(len(self._lead), problem.rank)
        row = (*self._lead[1:], problem.out_spatial[-1], channels)
        rows = min(self._lead[0], max(1, BLOCK // prod(row)))
        self._blocks = [self._block(slice(r, min(r + rows, self._lead[0]))) for r in range(0, self._lead[0], rows)]
        block = ((rows, *row), carrier)
        self._workspace = Workspace((self._blocks[0].staging.spec, block, block), self._frame)

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        frames, scratch = self._workspace()
        for i in range(self.problem.batch):
            image, goal = working_order(x[i], True), self._outputs(y[i])
            rest = None if residual is None else self._outputs(residual[i])
            for block, (staged, known) in zip(self._blocks, frames, strict=True):
                planes = yield from block.staging.steps(image, staged, zero_point)
                windows = known if planes is staged.work else self._windows(planes, block)
                part = None if rest is None else rest[block.rows]
                yield from self._filtered(windows, goal[block.rows], part, *scratch)

    def on_planes(self, planes: Array, y: Array) -> Iterator[Step]:
        """One image ``(g, o, *out_spatial)`` from ``(phases, *rows, columns / phases, g, 1)``, padded as it is read."""
        (_, scratch), goal = self._workspace(), self._outputs(y)
        for block in self._blocks:
            yield from self._filtered(self._windows(planes[:, block.reads], block), goal[block.rows], None, *scratch)

    def _block(self, rows: slice) -> _Block:
        p = self.problem
        part = rows if p.rank > 1 else None
        staging = Staging(p, self.carrier, channels_last=True, phases=self.phases, rows=part)
        start = rows.start * p.strides[0]
        return _Block(rows, slice(start, start + staging.shape[0]), staging)

    def _frame(self, work: Array, *scratch: Array) -> tuple[list[tuple[Staged, list[Array]]], tuple[Array, ...]]:
        frames = [b.staging.frame(work[:, : b.staging.shape[0]]) for b in self._blocks]
        return [(f, self._windows(f.work, b)) for f, b in zip(frames, self._blocks, strict=True)], scratch

    def _outputs(self, image: Array) -> Array:
        """``(*lead, columns, g, o)``."""
        view = working_order(image, True)
        return view if self.problem.rank > 1 else view[np.newaxis]

    def _windows(self, planes: Array, block: _Block) -> list[Array]:
        count = block.rows.stop - block.rows.start
        return [self._window(piece, planes[piece.plane, ..., 0], count) for piece in self._pieces]

    def _window(self, piece: _Piece, plane: Array, count: int) -> Array:
        """``(count, *lead[1:], blocks, *lead taps, taps, run * channels)``: what every output of a piece reads."""
        p, item = self.problem, plane.itemsize
        *rows, column, _ = plane.strides
        return strided(
            plane,
            plane.ndim - 2,
            piece.columns.start * self._step + piece.first,
            (count, *self._lead[1:], piece.blocks, *piece.weights.shape[1:]),
            (
                *([s * r for s, r in zip(p.strides[:-1], rows, strict=True)] or [0]),
                piece.run * self._step * column,
                *(d * r for d, r in zip(p.dilations[:-1], rows, strict=True)),
                piece.step * column,
                item,
            ),
        )

    def _filtered(
        self, windows: list[Array], y: Array, residual: Array | None, work: Array, part: Array
    ) -> Iterator[Step]:
        """A block of one image; sums are collected in y where its rows are dense."""
        in_place, count = self._in_place(y, residual), len(y)
        for o, epilogue in enumerate(self._epilogues):
            target = y[..., o]
            sums = target if in_place and _rows_are_dense(target) else work[:count]
            for piece, window in zip(self._pieces, windows, strict=True):
                own = sums[..., piece.columns, :]
                goal = part[:count, ..., piece.columns, :] if piece.adds else own
                shape = (*goal.shape[:-2], piece.blocks, -1)
                yield partial(np.einsum, self._subscripts, window, piece.weights[o], out=goal.reshape(shape))
                if piece.adds:
                    yield partial(np.add, own, goal, out=own)
            yield from epilogue.steps(sums, target, None if residual is None else residual[..., o])


def _pieces(problem: ConvProblem, weights: Array, carrier: np.dtype[Any], phases: int, run: int) -> Iterator[_Piece]:
    columns, k, d = problem.out_spatial[-1], problem.filter[-1], problem.dilations[-1]
    whole = columns - columns % run
    taps_apart = phases // gcd(phases, d)  # taps that read one plane: every so many
    packed = np.moveaxis(weights[:, :, 0], 0, -1).astype(carrier)  # (o, *taps, g)
    for part, width in ((slice(0, whole), run), (slice(whole, columns), columns - whole)):
        for first in range(min(taps_apart, k) if width else 0):
            taps = packed[..., first::taps_apart, :]
            repeated = np.broadcast_to(taps[..., np.newaxis, :], (*taps.shape[:-1], width, taps.shape[-1]))
            step = taps_apart * d // phases
            flat = aligned_copy(repeated, carrier).reshape(*taps.shape[:-1], -1)
            yield _Piece(part, width, first * d % phases, first * d // phases, step, flat, first > 0)


def _run(columns: int, channels: int) -> int:
    """Columns per run: the most that divide the row and stay in ``RUN``, else the whole row, else what fits."""
    least, most = (max(1, n // channels) for n in RUN)
    most = min(most, columns)
    divisor = next((run for run in range(most, least - 1, -1) if columns % run == 0), 0)
    return divisor or (columns if columns * channels <= ROW else most)


def _subscripts(lead: int, rank: int) -> str:
    """``abcde...`` for the leading axes and blocks, ``z`` for the run: ``abcdz,cdz->abz``."""
    letters = "abcdefghijklmnopqrstuvwxy"
    out, taps = letters[: lead + 1], letters[lead + 1 : lead + 1 + rank]
    return f"{out}{taps}z,{taps}z->{out}z"


def _rows_are_dense(y: Array) -> bool:
    """Whether columns and channels form one contiguous axis."""
    return y.strides[-1] == y.itemsize and (y.shape[-2] == 1 or y.strides[-2] == y.itemsize * y.shape[-1])
