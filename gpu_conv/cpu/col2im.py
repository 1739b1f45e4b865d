"""Transposed convolutions: the pixels times all taps at once, added up where they belong (col2im).

The product is as deep as x has channels. With channels last nothing of x is copied, and sums are collected in y; with
channels first both are moved there and back. Taps whose results lie side by side are one matrix, so that whole rows are
added: of 4x4 taps with stride 2, eight sums of rows of two pixels each.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..problem import ConvProblem
from . import gemm
from .epilogue import Epilogue
from .prepared import Prepared, Step, not_a_gemm
from .scratch import Array, Workspace, aligned
from .staging import copying
from .views import merged, split, working_order

BLOCK = 1 << 18  # products of a block of rows, 1 MiB in float32: 56x56x128 to 64 take 0.84 of the time with 1 << 17
DEEP = 2  # channels per filter from which it pays: 0.5 to 0.9 of the time of phases, 0.95 to 1.6 with 1
LONGEST = 1 << 20  # products of one row: they are kept


@dataclass(frozen=True)
class _Axis:
    """One spatial axis: element i of x and tap t meet in y at ``i * step + lo - t * dilation``."""

    size: int  # of x
    out: int
    taps: int
    step: int
    dilation: int
    lo: int

    def place(self, tap: int) -> int:
        """Where element 0 goes."""
        return self.lo - tap * self.dilation

    def inside(self, tap: int, start: int, stop: int) -> tuple[slice, slice]:
        """Those of the elements from start to stop that meet y (counted from start), and where."""
        place = self.place(tap)
        first = max(start, -(place // self.step))
        count = max(0, min(stop, -((place - self.out) // self.step)) - first)
        goal = place + first * self.step
        return slice(first - start, first - start + count), slice(goal, goal + count * self.step, self.step)


@dataclass(frozen=True)
class _Stack:
    """Taps that are multiplied in one go.

    Attributes:
        width: taps side by side whose results are added together.
        moves: for each of these groups, which results of a row meet y, and where. Elements of whole rows if the groups
            leave no gaps between them, else columns.
        weights: ``(rows of taps * groups, panels, c, filters)``.
    """

    width: int
    moves: list[tuple[slice, slice]]
    weights: Array

    def rows(self, image: Array, axis: _Axis) -> Array:
        """``(..., columns, o)`` as ``moves`` index it."""
        return image.reshape(*image.shape[:-2], -1) if self.width == axis.step else image


class Col2im(Prepared):
    """One group, one or two spatial axes, strides 1."""

    name = "matmul_col2im"

    @classmethod
    def refuses(cls, problem: ConvProblem) -> str | None:
        if problem.rank not in (1, 2) or problem.groups != 1 or any(s > 1 for s in problem.strides):
            return "it needs one group, one or two spatial axes and strides of 1"
        return not_a_gemm(problem, dilated=True)

    @classmethod
    def suits(cls, problem: ConvProblem) -> bool:
        """Whether it beats a convolution per phase: those of one tap write straight into y."""
        overlaps = any(k > ld for k, ld in zip(problem.filter, problem.input_dilations, strict=True))
        deep = problem.in_per_group >= DEEP * problem.out_per_group
        row = problem.in_spatial[-1] * prod(problem.filter) * problem.out_per_group
        return overlaps and deep and row <= LONGEST

    def __init__(self, problem: ConvProblem, weights: Array, bias: Array | None, carrier: np.dtype[Any]) -> None:
        super().__init__(problem, weights, bias, carrier)
        self._rows, self._columns = _axes(problem)
        shaped = None if bias is None else bias.reshape(problem.y.shape[1:3])
        self._epilogue = Epilogue(problem, shaped, carrier, channels_last=True)
        filters, (rows, columns) = problem.out_per_group, (self._rows, self._columns)
        row = columns.size * rows.taps * columns.taps * filters
        self._block = max(1, min(rows.size, BLOCK // row))
        self._stacks = list(_stacks(weights, rows, columns, carrier, self._block * columns.size))
        largest = max(len(s.weights) * s.width for s in self._stacks)
        sizes = (
            self._block * columns.size * problem.in_channels,
            self._block * columns.size * largest * filters,
            max(live for _, _, live in self._progress()) * columns.out * filters,
        )
        self._workspace = Workspace(tuple(((n,), carrier) for n in sizes), lambda *arrays: arrays)

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        pixels, products, sums = self._workspace()
        for i in range(self.problem.batch):
            image, target = _image(x[i]), _image(y[i])
            rest = None if residual is None else _image(residual[i])
            direct = self._in_place(y, rest) and target.flags.c_contiguous
            total = target if direct else sums.reshape(-1, *target.shape[1:])
            top = cleared = done = 0  # rows of y: the first in ``total``, and before which all is cleared, is finished
            for start, (reached, finished, _) in zip(self._starts, self._progress(), strict=True):
                if cleared < reached:
                    yield partial(total[cleared - top : reached - top].fill, 0)
                    cleared = reached
                stop = min(start + self._block, self._rows.size)
                matrix = yield from self._pixels(image[start:stop], pixels, zero_point)
                for stack in self._stacks:
                    yield from self._added(matrix, stack, start, stop, products, total, top)
                if done < finished:
                    rows, ready = slice(done, finished), total[done - top : finished - top]
                    yield from self._epilogue.steps(ready, target[rows], None if rest is None else rest[rows])
                    done = finished
                if not direct and top < done:
                    yield partial(np.copyto, total[: cleared - done], total[done - top : cleared - top])
                    top = done

    @property
    def _starts(self) -> range:
        """The first row of x of every block."""
        return range(0, self._rows.size, self._block)

    def _progress(self) -> Iterator[tuple[int, int, int]]:
        """After every block: rows of y that are reached, those that later ones reach no more, and how many it needs."""
        rows, before = self._rows, 0
        for start in self._starts:
            stop = start + self._block
            reached, finished = rows.place(0) + (stop - 1) * rows.step + 1, rows.place(rows.taps - 1) + stop * rows.step
            if stop >= rows.size:
                reached = finished = rows.out
            reached = max(before, min(rows.out, reached))
            finished = max(before, min(reached, finished))
            yield reached, finished, reached - before
            before = finished

    def _pixels(self, rows: Array, work: Array, zero_point: Array | None) -> Generator[Step, None, Array]:
        """``(pixels, c)``: the rows themselves where possible."""
        matrix = merged(rows[..., 0, :], 0, 2) if rows.dtype == self.carrier and zero_point is None else None
        if matrix is None or matrix.strides[1] != matrix.itemsize:
            copied = work[: rows.size].reshape(rows.shape)
            yield from copying(copied, rows, zero_point, channels_last=True)
            matrix = copied.reshape(-1, rows.shape[-1])
        return matrix

    def _added(
        self, pixels: Array, stack: _Stack, start: int, stop: int, products: Array, total: Array, top: int
    ) -> Iterator[Step]:
        """The products of some rows with the taps of a stack, added to the sums, which begin with row ``top`` of y."""
        taps, columns, run = self._rows.taps, self._columns, stack.width * total.shape[-1]
        goal = products[: len(stack.weights) * len(pixels) * run].reshape(-1, len(pixels), run)
        for left, right, part in gemm.products(pixels[np.newaxis], stack.weights, goal):
            yield partial(np.matmul, left, right, out=part)
        found = stack.rows(goal.reshape(taps, -1, stop - start, columns.size, run), columns)
        sums = stack.rows(total[:, :, 0], columns)
        for tap in range(taps):
            rows, lines = self._rows.inside(tap, start, stop)
            for i, (source, place) in enumerate(stack.moves):
                if rows.start < rows.stop and source.start < source.stop:
                    target = sums[lines.start - top : lines.stop - top : lines.step, place]
                    yield partial(np.add, target, found[tap, i, rows, source], out=target)


def _axes(problem: ConvProblem) -> list[_Axis]:
    """Rows and columns."""
    lows = (lo for lo, _ in problem.padding)
    sizes = problem.in_spatial, problem.out_spatial, problem.filter, problem.input_dilations, problem.dilations, lows
    axes = [_Axis(*numbers) for numbers in zip(*sizes, strict=True)]
    return [_Axis(1, 1, 1, 1, 1, 0)] * (2 - len(axes)) + axes


def _stacks(weights: Array, rows: _Axis, columns: _Axis, carrier: np.dtype[Any], pixels: int) -> Iterator[_Stack]:
    """The taps, as many side by side as elements of x are apart; what is left over, one by one."""
    together = columns.step if columns.dilation == 1 else 1
    single, filters = columns.taps % together, weights.shape[1]
    for first, stop, width in ((single, columns.taps, together), (0, single, 1)):
        if first < stop:
            taps = weights[0].reshape(*weights.shape[1:3], rows.taps, columns.taps)[..., first:stop]  # (o, c, ...)
            source = split(taps, 3, width)[..., ::-1].transpose(1, 2, 3, 4, 0)  # (c, rows, groups, width, o)
            groups = range(first + width - 1, stop, width)  # the last tap of each, whose results begin first
            moves = [
                _run(columns, t, filters) if width == columns.step else columns.inside(t, 0, columns.size)
                for t in groups
            ]
            yield _Stack(width, moves, _packed(source, carrier, pixels))


def _run(axis: _Axis, tap: int, filters: int) -> tuple[slice, slice]:
    """Whole rows of results that begin with a tap: those of their elements that meet a row of y, and where."""
    place = axis.place(tap)
    low, high = max(0, place), min(axis.out, place + axis.size * axis.step)
    return slice((low - place) * filters, (high - place) * filters), slice(low * filters, high * filters)


def _packed(source: Array, carrier: np.dtype[Any], pixels: int) -> Array:
    """Filters in panels: ``(c, rows, groups, width, o)`` as ``(rows * groups, panels, c, panel)``."""
    terms, rows, groups, width, filters = source.shape
    panel = gemm.panel(terms, width * filters, pixels)
    packed = aligned((rows * groups, width * filters // panel, terms, panel), carrier)
    for i in range(0, terms, 4):  # the lines of the source stay cached
        part = source[i : i + 4].reshape(-1, *packed.shape[:2], panel)
        packed[:, :, i : i + 4] = np.moveaxis(part, 0, 2)
    return packed


def _image(view: Array) -> Array:
    """``(rows, columns, 1, channels)``."""
    ordered = working_order(view, True)
    return ordered if ordered.ndim == 4 else ordered[np.newaxis]
