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
WIDE = 96  # channels from which planes are not worth the copy: 64 at 112x112 take 0.7 of the time with planes


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


class Depthwise(Prepared):
    """One input channel per group, channels last.

    Args:
        wide: channels from which a strided convolution reads single columns instead of planes of every s-th column.

    Attributes:
        phases: planes that the input is split into: plane p holds the columns p, p + phases ...
    """

    name = "depthwise_rows"

    @classmethod
    def refuses(cls, problem: ConvProblem) -> str | None:
        if problem.in_per_group != 1 or problem.rank == 0:
            return "it needs one input channel per group and a spatial axis"
        return not_a_gemm(problem)

    def __init__(
        self, problem: ConvProblem, weights: Array, bias: Array | None, carrier: np.dtype[Any], wide: int = WIDE
    ) -> None:
        super().__init__(problem, weights, bias, carrier)
        channels, stride = problem.groups, problem.strides[-1]
        self.phases = stride if channels < wide else 1
        self._step = stride // self.phases  # columns of a plane between neighbouring outputs
        self._staging = Staging(problem, carrier, channels_last=True, phases=self.phases)
        run = _run(problem.out_spatial[-1], channels) if self._step == 1 else 1
        self._pieces = list(_pieces(problem, weights, carrier, self.phases, run))
        biases = [None] * problem.out_per_group if bias is None else bias.reshape(channels, -1).T
        self._epilogues = [Epilogue(problem, b, carrier, channels_last=True) for b in biases]
        self._lead = problem.out_spatial[:-1] or (1,)
        self._subscripts = _subscripts(len(self._lead), problem.rank)
        row = (*self._lead[1:], problem.out_spatial[-1], channels)
        self._rows = min(self._lead[0], max(1, BLOCK // prod(row)))
        block = ((self._rows, *row), carrier)
        specs = self._staging.spec, block, block
        self._workspace = Workspace(specs, self._frame)

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        staged, known, _ = self._workspace()
        for i in range(self.problem.batch):
            planes = yield from self._staging.steps(x, i, staged, zero_point)
            windows = known if planes is staged.work else self._windows(planes)
            yield from self._image(windows, y[i], None if residual is None else residual[i])

    def on_planes(self, planes: Array, y: Array) -> Iterator[Step]:
        """One image ``(g, o, *out_spatial)`` from ``(phases, *rows, columns / phases, g, 1)``, padded as it is read."""
        return self._image(self._windows(planes), y, None)

    def _frame(self, work: Array, *scratch: Array) -> tuple[Staged, list[Array], tuple[Array, ...]]:
        return self._staging.frame(work), self._windows(work), scratch

    def _windows(self, planes: Array) -> list[Array]:
        return [self._window(piece, planes[piece.plane, ..., 0]) for piece in self._pieces]

    def _filters(self, y: Array, o: int) -> Array:
        """The outputs of the o-th filter of every group in one image: ``(*lead, columns, g)``."""
        view = working_order(y, True)[..., o]
        return view if self.problem.rank > 1 else view[np.newaxis]

    def _window(self, piece: _Piece, plane: Array) -> Array:
        """``(*lead, blocks, *lead taps, taps, run * channels)``: what every output of a piece reads."""
        p, item = self.problem, plane.itemsize
        *rows, column, _ = plane.strides
        return strided(
            plane,
            plane.ndim - 2,
            piece.columns.start * self._step + piece.first,
            (*self._lead, piece.blocks, *piece.weights.shape[1:]),
            (
                *([s * r for s, r in zip(p.strides[:-1], rows, strict=True)] or [0]),
                piece.run * self._step * column,
                *(d * r for d, r in zip(p.dilations[:-1], rows, strict=True)),
                piece.step * column,
                item,
            ),
        )

    def _image(self, windows: list[Array], y: Array, residual: Array | None) -> Iterator[Step]:
        direct, (*_, scratch) = self._in_place(y, residual), self._workspace()
        for o in range(self.problem.out_per_group):
            target = self._filters(y, o)
            rest = None if residual is None else self._filters(residual, o)
            sums = target if direct and _rows_are_dense(target) else None
            yield from self._filtered(windows, o, target, rest, sums, *scratch)

    def _filtered(
        self,
        windows: list[Array],
        o: int,
        y: Array,
        residual: Array | None,
        sums: Array | None,
        work: Array,
        part: Array,
    ) -> Iterator[Step]:
        """The o-th filter of every group; collected in ``sums`` if given, else block by block in ``work``."""
        for start in range(0, self._lead[0], self._rows):
            rows = slice(start, min(start + self._rows, self._lead[0]))
            count = rows.stop - start
            block = work[:count] if sums is None else sums[rows]
            for piece, window in zip(self._pieces, windows, strict=True):
                target = block[..., piece.columns, :]
                goal = part[:count, ..., piece.columns, :] if piece.adds else target
                shape = (*goal.shape[:-2], piece.blocks, -1)
                yield partial(np.einsum, self._subscripts, window[rows], piece.weights[o], out=goal.reshape(shape))
                if piece.adds:
                    yield partial(np.add, target, goal, out=target)
            yield from self._epilogues[o].steps(block, y[rows], None if residual is None else residual[rows])


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
