"""Dense and grouped convolutions of any rank: blocks of the output as matrix products.

The columns of a block (every input element that its outputs read, once per tap) are copied through one overlapping view
of the staged image and multiplied while they lie in the cache. The copy is bounded by ``COLUMNS``, whatever the layer.

Where the filter moves by one row, its rows are products of their own: output row r needs under filter row k what row
r + k needs under filter row 0, so the columns of one filter row serve all of them, a third of the copy for 3x3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..problem import ConvProblem
from . import gemm
from .epilogue import Epilogue
from .prepared import Prepared, Step, not_a_gemm
from .scratch import Array, Workspace, aligned
from .staging import Staged, Staging
from .views import channels_are_last, cut, even_part, windows_of_runs, working_order

Box = tuple[slice, ...]  # a part of the output grid, one slice per spatial axis

COLUMNS = 1 << 18  # elements of the columns of a block: 1 MiB in float32
PIXELS = 1024  # of a block: its sums stay in the L2 cache (10 % of a stem)
DEEP = 64  # terms per sum of a product from which a filter row is one; BLAS is slower on shorter sums
NARROW = 16  # input channels per group below which a tap's run is too short with channels last: runs of pixels instead


@dataclass(frozen=True)
class _Block:
    """One part of the output of an image."""

    index: tuple[slice, ...]  # in working order
    sums: Array
    steps: list[Step]  # from the staged image to the sums


class Im2col(Prepared):
    """Any filter, groups and padding."""

    name = "im2col_matmul"

    @classmethod
    def refuses(cls, problem: ConvProblem) -> str | None:
        if problem.rank == 0:
            return "it needs a spatial axis"
        return not_a_gemm(problem)

    def __init__(self, problem: ConvProblem, weights: Array, bias: Array | None, carrier: np.dtype[Any]) -> None:
        super().__init__(problem, weights, bias, carrier)
        self._last = channels_are_last(problem.y) and (problem.groups == 1 or problem.in_per_group >= NARROW)
        rows = problem.filter[0]
        shares = problem.strides[0] == problem.dilations[0] == 1 and problem.taps >= DEEP * rows
        self._products = rows if shares else 1  # per block and group: filter rows, or all at once
        self._taps = problem.taps // self._products
        filters = gemm.panel(self._taps, problem.out_per_group, prod(problem.out_spatial))
        self._weights = _packed(weights, carrier, self._products, filters if self._last else None)
        self._staging = Staging(problem, carrier, self._last, dense=False)
        shaped = None if bias is None else bias.reshape(problem.y.shape[1:3])
        self._epilogue = Epilogue(problem, shaped, carrier, self._last)
        largest = max(self._taps, problem.out_channels)
        self._boxes = list(_boxes(problem.out_spatial, max(1, min(PIXELS, COLUMNS // largest))))
        pixels, read = (max(map(_points, boxes)) for boxes in (self._boxes, map(self._read, self._boxes)))
        part = pixels * problem.out_per_group if self._products > 1 else 0
        sizes = read * self._taps, pixels * problem.out_channels, part
        specs = self._staging.spec, *(((size,), carrier) for size in sizes)
        self._workspace = Workspace(specs, self._frame)

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _frame(self, work: Array, *scratch: Array) -> tuple[Staged, list[_Block], tuple[Array, ...]]:
        return self._staging.frame(work), self._blocks(work[0], *scratch) if work.size else [], scratch

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        staged, known, scratch = self._workspace()
        for i in range(self.problem.batch):
            images = yield from self._staging.steps(working_order(x[i], self._last), staged, zero_point)
            target = working_order(y[i], self._last)
            rest = None if residual is None else working_order(residual[i], self._last)
            for block in known if images is staged.work else self._blocks(images[0], *scratch):
                yield from block.steps
                part = None if rest is None else rest[block.index]
                yield from self._epilogue.steps(block.sums, target[block.index], part)

    def _blocks(self, image: Array, columns: Array, scratch: Array, part: Array) -> list[_Block]:
        """The products of a staged image; every block uses the same working memory."""
        windows, p = self._windows(image), self.problem
        blocks = []
        for box in self._boxes:
            sizes, channels = [s.stop - s.start for s in box], (p.groups, p.out_per_group)
            flat = scratch[: prod(sizes) * p.out_channels]
            if self._last:
                index, sums = box, flat.reshape(*sizes, *channels)
                products = flat.reshape(-1, *channels).swapaxes(0, 1)
            else:
                index, sums = (slice(None), slice(None), *box), flat.reshape(*channels, *sizes)
                products = flat.reshape(*channels, -1)
            steps = [s for g in range(p.groups) for s in self._multiply(windows[g], box, g, columns, products[g], part)]
            blocks.append(_Block(index, sums, steps))
        return blocks

    def _read(self, box: Box) -> Box:
        """The columns that a box reads: those of the rows below it too, where filter rows share them."""
        return slice(box[0].start, box[0].stop + self._products - 1), *box[1:]

    def _windows(self, image: Array) -> Array:
        """``(g, *spatial, *filter, c)`` or ``(g, c, *filter, *spatial)``: what every output reads in one product."""
        p = self.problem
        *spatial, group, channel = image.strides if self._last else (*image.strides[2:], *image.strides[:2])
        steps = tuple(s * b for s, b in zip(p.strides, spatial, strict=True))
        taps = tuple(d * b for d, b in zip(p.dilations, spatial, strict=True))
        rows = p.out_spatial[0] + self._products - 1
        sizes, filters = (rows, *p.out_spatial[1:]), (p.filter[0] // self._products, *p.filter[1:])
        if self._last:
            shape = (p.groups, *sizes, *filters, p.in_per_group)
            return windows_of_runs(image, shape, (group, *steps, *taps, channel), keep=1 + p.rank)
        return as_strided(image, (p.groups, p.in_per_group, *filters, *sizes), (group, channel, *taps, *steps))

    def _multiply(
        self, windows: Array, box: Box, g: int, columns: Array, product: Array, part: Array
    ) -> Iterator[Step]:
        """One group: its columns stay in the cache."""
        read = self._read(box)
        window = windows[read] if self._last else cut(windows, read)
        block = columns[: _points(read) * self._taps]
        yield partial(np.copyto, block.view(window.dtype).reshape(window.shape), window)
        block = block.reshape(-1, self._taps) if self._last else block.reshape(self._taps, -1)
        row = _points(box[1:])
        for k, weights in enumerate(self._weights[g]):
            pixels = slice(k * row, k * row + _points(box))
            goal = part[: product.size].reshape(product.shape) if k else product
            if self._last:
                for left, right, target in gemm.products(block[pixels], weights, goal):
                    yield partial(np.matmul, left, right, out=target)
            else:
                yield partial(np.matmul, weights, block[:, pixels], out=goal)
            if k:
                yield partial(np.add, product, goal, out=product)


def _packed(weights: Array, carrier: np.dtype[Any], products: int, panel: int | None) -> Array:
    """Filters as the matrices that multiply the columns.

    Returns:
        ``(g, products, panels, taps * c, panel)``; without a panel ``(g, products, o, c * taps)``.
    """
    g, o, c, *taps = weights.shape
    if panel is None:
        rows = weights.reshape(g, o, c, products, -1).transpose(0, 3, 1, 2, 4)
        return np.ascontiguousarray(rows, carrier).reshape(g, products, o, -1)
    packed = aligned((g, o // panel, *taps, c, panel), carrier)
    source = weights.reshape(g, -1, panel, c, *taps).transpose(0, 1, *range(4, 4 + len(taps)), 3, 2)
    for i in range(0, c, 4):  # 3 times faster than in one go: the lines of the source stay cached
        packed[..., i : i + 4, :] = source[..., i : i + 4, :]
    return packed.reshape(g, o // panel, products, -1, panel).swapaxes(1, 2)


def _points(box: Box) -> int:
    return prod(s.stop - s.start for s in box)


def _boxes(sizes: tuple[int, ...], limit: int) -> Iterator[Box]:
    """Contiguous boxes of at most ``limit`` points: whole inner axes, a part of one, single outer points."""
    inner, axis = 1, len(sizes)
    while axis and inner * sizes[axis - 1] <= limit:
        axis -= 1
        inner *= sizes[axis]
    if not axis:
        yield tuple(slice(0, n) for n in sizes)
        return
    cut = even_part(sizes[axis - 1], limit // inner)
    starts = [range(n) for n in sizes[: axis - 1]] + [range(0, sizes[axis - 1], cut)]
    for corner in product(*starts):
        box = [slice(c, c + 1) for c in corner[:-1]] + [slice(corner[-1], min(corner[-1] + cut, sizes[axis - 1]))]
        yield (*box, *(slice(0, n) for n in sizes[axis:]))
