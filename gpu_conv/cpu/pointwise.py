"""1x1 convolutions: matrix products over blocks of pixels, written straight into y where it has the right form."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from math import prod
from typing import Any

import numpy as np

from ..problem import ConvProblem
from . import gemm
from .epilogue import Epilogue
from .prepared import Prepared, Step, not_a_gemm
from .scratch import Array, Workspace, aligned_copy
from .staging import copying
from .views import channels_are_last, cut, even_part, merged, split, working_order

FIRST = 4608  # weights up to which small products are the faster ones with channels first
BLOCK = 1 << 17  # output elements of a block: bias and activation find it in the L2 cache (25 % of 112x112x96)


class Pointwise(Prepared):
    """A filter of one element on unpadded input, any strides, groups and rank (0 included)."""

    name = "pointwise_matmul"

    @classmethod
    def refuses(cls, problem: ConvProblem) -> str | None:
        if not problem.is_pointwise:
            return "it needs a 1x1 filter without padding"
        return not_a_gemm(problem)

    def __init__(self, problem: ConvProblem, weights: Array, bias: Array | None, carrier: np.dtype[Any]) -> None:
        super().__init__(problem, weights, bias, carrier)
        self._last = channels_are_last(problem.y)
        shaped = None if bias is None else bias.reshape(problem.y.shape[1:3])
        self._epilogue = Epilogue(problem, shaped, carrier, self._last)
        self._filters = problem.out_per_group
        if self._last:
            self._filters = gemm.panel(problem.in_per_group, self._filters, prod(problem.out_spatial))
        # (g, panels, o, c): a panel is a matrix, its transpose where channels come last.
        panels = weights.reshape(problem.groups, -1, self._filters, problem.in_per_group)
        self._weights = aligned_copy(panels.swapaxes(2, 3) if self._last else panels, carrier)
        pixels = zip(problem.out_spatial, problem.strides, strict=True)
        read = tuple(slice(0, (n - 1) * s + 1, s) for n, s in pixels)
        self._read = read if any(s > 1 for s in problem.strides) else None
        # A block is some rows of one image, or some images, several times the size of the weights: BLAS packs both.
        height, row = (problem.out_spatial or (1,))[0], prod(problem.out_spatial[1:])
        wanted = max(BLOCK, 4 * weights.size) // problem.out_channels
        self._by_image = self._last and wanted >= height * row
        units, unit = (problem.batch, height * row) if self._by_image else (height, row)
        size = even_part(units, wanted // unit)
        self._blocks = gemm.evenly(units, size)
        block = size * unit
        specs = ((block * problem.in_channels,), carrier), ((block * problem.out_channels,), carrier)
        self._workspace = Workspace(specs, lambda pixels, sums: (pixels, sums))

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        direct = self._in_place(y, residual)
        views = [self._ordered(x if self._read is None else cut(x, self._read)), self._ordered(y)]
        views += [] if residual is None else [self._ordered(residual)]
        for images in [views] if self._by_image else zip(*views, strict=True):
            for part, size in self._blocks:
                blocks = [self._cut(view, part, size) for view in images]
                yield from self._run(blocks, zero_point, direct)

    def _ordered(self, view: Array) -> Array:
        """Working order behind the images, with a spatial axis."""
        return working_order(view if self.problem.rank else view[..., np.newaxis], self._last, lead=1)

    def _cut(self, view: Array, part: slice, size: int) -> Array:
        """``(blocks, size, ..., g, c)`` with channels last, else ``(blocks, g, c, size, ...)``."""
        if size == view.shape[0 if self._last else 2]:
            return view[np.newaxis]
        if self._last:
            return split(view[part], 0, size)
        blocks = split(view[:, :, part], 2, size)
        return blocks.transpose(2, 0, 1, *range(3, blocks.ndim))

    def _run(self, blocks: list[Array], zero_point: Array | None, direct: bool) -> Iterator[Step]:
        """Blocks of one size. Views are made of all of them at once, a microsecond each."""
        x, y, *rest = blocks
        work, scratch = self._workspace()
        staged, sums = x, y
        pixels = None if x.dtype != self.carrier or zero_point is not None else self._matrices(x)
        if pixels is None or not (_unit(pixels, 2) or _unit(pixels, 3)):
            staged = work[: x[0].size].reshape(1, *x.shape[1:])
            pixels = self._matrices(staged)
        products = self._matrices(y) if direct else None
        weights = self._weights
        if direct and products is None and self._last and _unit(y, y.ndim - 1):
            # Gaps between its pixels or rows, as in a phase of a transposed convolution: a product for each row.
            pixels, products = self._rows(staged), self._rows(y)
            weights = weights.reshape(len(weights), *[1] * (y.ndim - 4), *weights.shape[1:])
        elif products is None or not _unit(products, 3):
            sums = scratch[: y[0].size].reshape(1, *y.shape[1:])
            products = self._matrices(sums)
        assert pixels is not None and products is not None  # what is copied has gaps no more
        tiles = [(cycle(left), right, cycle(goal)) for left, right, goal in self._tiles(pixels, weights, products)]
        for source, target, block, *residual in zip(x, y, cycle(sums), *rest):
            if staged is not x:
                yield from copying(staged[0], source, zero_point, self._last)
            for left, right, goal in tiles:
                operands = (next(left), right) if self._last else (right, next(left))
                yield partial(np.matmul, *operands, out=next(goal))
            yield from self._epilogue.steps(block, target, *residual)

    def _tiles(self, pixels: Array, weights: Array, products: Array) -> Iterator[tuple[Array, Array, Array]]:
        """What one call multiplies, and where to: pixels and products of all blocks, and weights."""
        if self._last:
            yield from gemm.products(pixels, weights, products)
            return
        terms, count = self.problem.in_per_group, pixels.shape[3]
        tile = gemm.piece(terms, self._filters, count) if terms * self._filters <= FIRST else count
        for part, size in gemm.evenly(count, tile):
            goal = split(products[..., part], 3, size).swapaxes(2, 3)
            yield split(pixels[..., part], 3, size).swapaxes(2, 3), weights, goal

    def _matrices(self, blocks: Array) -> Array | None:
        """Per block and group, ``(pixels, c)`` with channels last, else ``(c, pixels)``; None if that is no view."""
        if not self._last:
            return merged(blocks, 3, blocks.ndim)
        matrices = merged(blocks, 1, blocks.ndim - 2)
        return None if matrices is None else matrices.swapaxes(1, 2)

    def _rows(self, blocks: Array) -> Array:
        """Per block and group, ``(*rows, columns, c)``, channels last."""
        return blocks.transpose(0, blocks.ndim - 2, *range(1, blocks.ndim - 2), blocks.ndim - 1)


def _unit(matrices: Array, axis: int) -> bool:
    return matrices.shape[axis] == 1 or matrices.strides[axis] == matrices.itemsize
