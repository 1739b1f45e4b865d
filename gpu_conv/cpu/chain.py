"""MobileNet's blocks, a convolution, a depthwise and a 1x1 one, by blocks of rows: the images between them stay in L2.

A window of rows holds the part of the first result that a block reads, with its border of zeros; the rows that the next
block reads too are copied to its top. Each block is three convolutions of the ordinary strategies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..problem import ConvProblem, Tensor
from .depthwise import Depthwise
from .im2col import Im2col
from .pointwise import Pointwise
from .prepared import Bound, Prepared, Step
from .scratch import Array, Workspace
from .views import channels_are_last, even_part

LARGE = 1 << 17  # elements of the first result from which it pays: 5 % of 28x28x192, 20 % of 56x56x144
ROWS = 100_000  # elements of the first result that are computed for a block: 2 % of MobileNetV2

Layer = tuple[ConvProblem, Array, "Array | None"]  # filter and bias as ``cpu.prepare`` takes them
Size = tuple[int, int]


def refuses(layers: Sequence[Layer]) -> str | None:
    """Why these convolutions, each of the result before, are not computed by blocks of rows; None if they are."""
    problems = [problem for problem, _, _ in layers]
    if len(problems) != 3 or any(p.rank != 2 for p in problems):
        return "it needs three convolutions of images"
    first, depthwise, project = problems
    if Im2col.refuses(first) or Depthwise.refuses(depthwise) or Pointwise.refuses(project):
        return "the second must be depthwise, the last 1x1"
    if any(p.x.dtype != p.accumulate or p.y.dtype != p.accumulate for p in problems):
        return "results are rounded"
    if min(map(min, depthwise.padding)) < 0 or project.strides != (1, 1):
        return "pixels between them are left out"
    if depthwise.strides != (1, 1) and not (first.is_pointwise and first.strides == (1, 1)):
        return "where the second has strides, the first must be 1x1 without"
    if not channels_are_last(first.x) or not channels_are_last(project.y):
        return "channels must be last"
    if first.y.size < LARGE * first.batch:
        return f"the first result has fewer than {LARGE} elements: it stays in the cache anyway"
    return None if all(np.isfinite(w).all() for _, w, _ in layers[:2]) else "infinite weights would meet padding"


@dataclass(frozen=True)
class _Block:
    """Some rows of the last result.

    Attributes:
        rows: of the last result.
        new: rows of the first result that are computed for it.
        place: where they go in the window; what is around them and not kept is padding.
        kept: rows of the window that the block before has computed.
        reads: rows of the window.
    """

    rows: slice
    new: slice
    place: slice
    kept: int
    reads: int


@dataclass(frozen=True)
class _Plane:
    """Every so many columns of the padded first result (see ``Depthwise.phases``): which, and where they go."""

    columns: slice
    place: slice


class Chain:
    """Three convolutions that :func:`refuses` does not refuse; the residual of the last is x or none."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        first, depthwise, project = (problem for problem, _, _ in layers)
        self._residual = project.residual is not None
        (_, width), (out, columns), (_, (left, _)) = first.out_spatial, depthwise.out_spatial, depthwise.padding
        rows = even_part(out, min(out // 2, ROWS // (depthwise.strides[0] * width * first.out_channels)))
        self._blocks = [_block(first, depthwise, slice(r, min(r + rows, out))) for r in range(0, out, rows)]

        self._parts: dict[Any, Prepared] = {}
        needed = max(left + width, (columns - 1) * depthwise.strides[1] + _reach(depthwise, 1))
        self._depthwise = [self._part(1, (b.reads, needed), (_count(b.rows), columns)) for b in self._blocks]
        self._project = [self._part(2, (_count(b.rows), columns), (_count(b.rows), columns)) for b in self._blocks]
        phases = self._depthwise[0].phases
        self._planes = [_plane(p, phases, left, width) for p in range(phases)]
        self._first = [[self._first_part(block, plane) for plane in self._planes] for block in self._blocks]

        reserved = max(part.workspace_bytes for part in self._parts.values())
        pitch = max(-(-needed // phases), *(plane.place.stop for plane in self._planes))
        dtype = np.dtype(first.accumulate)
        specs = (
            ((reserved,), np.dtype(np.uint8)),  # the layers' own memory, which begins where this does
            ((phases, max(b.reads for b in self._blocks), pitch, first.out_channels), dtype),
            ((rows, columns, depthwise.out_channels), dtype),
        )
        self._workspace = Workspace(specs, lambda _, window, middle: (window, middle))

    @property
    def workspace_bytes(self) -> int:
        """Memory that a run uses beyond operands and packed weights."""
        return self._workspace.nbytes

    def bind(self, x: Array, y: Array) -> Bound:
        """What computes ``y`` from ``x``, axes as in ``cpu.Prepared``."""
        return Bound(partial(self._steps, x, y))

    def _part(self, layer: int, read: Size, made: Size, padding: Any = ((0, 0), (0, 0))) -> Any:
        """One of the convolutions from some pixels to some pixels of one image; those of a geometry are the same."""
        key = layer, read, made, padding
        if key not in self._parts:
            problem, w, bias = self._layers[layer]
            y = _image(problem.y, made)
            residual = y if problem.residual else None
            part = replace(problem, x=_image(problem.x, read), y=y, residual=residual, padding=padding)
            strategy: Any = Depthwise if layer == 1 else Pointwise if problem.is_pointwise else Im2col
            self._parts[key] = strategy(part, w, bias, np.dtype(problem.accumulate))
        return self._parts[key]

    def _first_part(self, block: _Block, plane: _Plane) -> tuple[Prepared, slice, slice] | None:
        """The first convolution for a block and a plane, with the rows and columns of x that it reads."""
        problem = self._layers[0][0]
        (height, width), ((above, _), across) = problem.in_spatial, problem.padding
        size = _count(block.new), _count(plane.place)
        if not all(size):
            return None
        start = block.new.start * problem.strides[0] - above
        stop = (block.new.stop - 1) * problem.strides[0] - above + _reach(problem, 0)
        rows = slice(max(0, start), min(height, stop))
        columns = slice(plane.columns.start, width, plane.columns.step)
        read = _count(rows), len(range(*columns.indices(width)))
        padding = (rows.start - start, stop - rows.stop), across
        return self._part(0, read, size, padding), rows, columns

    def _steps(self, x: Array, y: Array) -> Iterator[Step]:
        window, middle = self._workspace()
        for i in range(len(x)):
            for plane, columns in zip(self._planes, window, strict=True):
                yield partial(columns[:, : plane.place.start].fill, 0)
                yield partial(columns[:, plane.place.stop :].fill, 0)
            for index in range(len(self._blocks)):
                yield from self._rows(index, window, middle, x[i : i + 1], y[i : i + 1])

    def _rows(self, index: int, window: Array, middle: Array, x: Array, y: Array) -> Iterator[Step]:
        """One block of one image."""
        first, depthwise, _ = (problem for problem, _, _ in self._layers)
        block = self._blocks[index]
        if block.kept:
            before = _count(self._blocks[0].rows) * depthwise.strides[0]
            yield partial(np.copyto, window[:, : block.kept], window[:, before : before + block.kept])
        for rows in (slice(block.kept, block.place.start), slice(block.place.stop, block.reads)):
            if rows.start < rows.stop:
                yield partial(window[:, rows].fill, 0)
        for plane, columns, part in zip(self._planes, window, self._first[index], strict=True):
            if part is not None:
                convolution, read, across = part
                goal = _canonical(columns[block.place, plane.place], first)
                yield from convolution._steps(x[..., read, across], goal, None, None)
        sums = middle[: _count(block.rows)]
        planes = window[:, : block.reads, :, :, np.newaxis]
        yield from self._depthwise[index].on_planes(planes, _canonical(sums, depthwise)[0])
        rows, source = block.rows, sums[np.newaxis, np.newaxis].transpose(0, 1, 4, 2, 3)
        rest = x[..., rows, :] if self._residual else None
        yield from self._project[index]._steps(source, y[..., rows, :], rest, None)


def _block(first: ConvProblem, depthwise: ConvProblem, rows: slice) -> _Block:
    (above, _), (stride, _), reach = depthwise.padding[0], depthwise.strides, _reach(depthwise, 0)
    origin, reads = rows.start * stride, (_count(rows) - 1) * stride + reach
    kept = max(0, reach - stride) if origin else 0
    low, high = (min(max(row, above), above + first.out_spatial[0]) for row in (origin + kept, origin + reads))
    place = slice(max(kept, low - origin), max(kept, high - origin))
    return _Block(rows, slice(low - above, high - above), place, kept, reads)


def _plane(index: int, phases: int, left: int, width: int) -> _Plane:
    start = (index - left) % phases
    place = (start + left) // phases
    return _Plane(slice(start, width, phases), slice(place, place + len(range(start, width, phases))))


def _reach(problem: ConvProblem, axis: int) -> int:
    """Rows or columns that one element of the result reads."""
    return (problem.filter[axis] - 1) * problem.dilations[axis] + 1


def _count(rows: slice) -> int:
    count: int = rows.stop - rows.start
    return count


def _image(tensor: Tensor, size: Size) -> Tensor:
    """One image with a tensor's dtype and channels, channels last."""
    (_, a, b, *_), (rows, columns) = tensor.shape, size
    strides = rows * columns * a * b, b, 1, columns * a * b, a * b
    return Tensor(tensor.dtype, (1, a, b, rows, columns), strides)


def _canonical(image: Array, problem: ConvProblem) -> Array:
    """``(rows, columns, channels)`` as the result ``(1, g, o, rows, columns)`` of a convolution."""
    return image.reshape(1, *image.shape[:2], *problem.y.shape[1:3]).transpose(0, 3, 4, 1, 2)
