"""1x1 convolutions: matrix products over blocks of pixels, written straight into y where it has the right form."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .epilogue import Epilogue
from .prepared import Prepared, Step, not_a_gemm
from .scratch import Array, Workspace
from .staging import copying
from .views import channels_are_last, cut, merged, working_order

SMALL = 960_000, 8192  # multiply-adds of a product, elements of its weights: OpenBLAS does not pack its operands then
BLOCK = 1 << 16  # output elements of a block: bias and activation find it in the L2 cache (25 % of 112x112x96)


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
        matrix = weights.reshape(weights.shape[:3])  # (g, o, c)
        self._weights = np.ascontiguousarray(matrix.swapaxes(1, 2) if self._last else matrix, carrier)
        shaped = None if bias is None else bias.reshape(problem.y.shape[1:3])
        self._epilogue = Epilogue(problem, shaped, carrier, self._last)
        pixels = zip(problem.out_spatial, problem.strides, strict=True)
        read = tuple(slice(0, (n - 1) * s + 1, s) for n, s in pixels)
        self._read = read if any(s > 1 for s in problem.strides) else None
        # A block is some rows of one image, or some images, several times the size of the weights: BLAS packs both.
        self._height = problem.out_spatial[0] if problem.rank else 1
        row = prod(problem.out_spatial[1:])
        wanted = max(BLOCK, 4 * weights.size)
        self._rows = max(1, min(self._height, wanted // (row * problem.out_channels)))
        whole = self._last and self._rows == self._height
        image = self._height * row * problem.out_channels
        self._images = max(1, min(problem.batch, wanted // image)) if whole else 1
        self._cuts = [
            np.s_[i : i + self._images, r : r + self._rows] if self._last else np.s_[i, :, :, r : r + self._rows]
            for i in range(0, problem.batch, self._images)
            for r in range(0, self._height, self._rows)
        ]
        block = self._images * self._rows * row
        specs = ((block * problem.in_channels,), carrier), ((block * problem.out_channels,), carrier)
        self._workspace = Workspace(specs, lambda pixels, sums: (pixels, sums))

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        if self._read is not None:
            x = cut(x, self._read)
        if not self.problem.rank:
            x, y, residual = (
                x[..., np.newaxis],
                y[..., np.newaxis],
                None if residual is None else residual[..., np.newaxis],
            )
        convert = x.dtype != self.carrier or zero_point is not None
        direct = self._in_place(y, residual)
        work, scratch = self._workspace()
        x, y = working_order(x, self._last, lead=1), working_order(y, self._last, lead=1)
        residual = None if residual is None else working_order(residual, self._last, lead=1)
        for part in self._cuts:
            source, target = x[part], y[part]
            pixels = None if convert else self._matrices(source)
            if pixels is None or not (_unit(pixels, 1) or _unit(pixels, 2)):
                block = work[: source.size].reshape(source.shape)
                yield from copying(block, source, zero_point, self._last)
                pixels = self._matrices(block)
            products, sums = self._matrices(target) if direct else None, target
            if products is None or not _unit(products, 2):
                sums = scratch[: target.size].reshape(target.shape)
                products = self._matrices(sums)
            yield from self._multiply(pixels, products)
            yield from self._epilogue.steps(sums, target, None if residual is None else residual[part])

    def _multiply(self, pixels: Any, products: Any) -> Iterator[Step]:
        left, right = (pixels, self._weights) if self._last else (self._weights, pixels)
        if self.problem.groups > 1:
            yield partial(np.matmul, left, right, out=products)
            return
        size, (work, weights) = self._weights.size, SMALL
        count = pixels.shape[1 if self._last else 2]
        step = max(1, work // size) if size <= weights else count
        for i in range(0, count, step):
            part = slice(i, i + step)
            if self._last:
                yield partial(np.matmul, left[0, part], right[0], out=products[0, part])
            else:
                yield partial(np.matmul, left[0], right[0, :, part], out=products[0, :, part])

    def _matrices(self, block: Array) -> Array | None:
        """One matrix per group: ``(g, pixels, c)`` with channels last, else ``(g, c, pixels)``; None if not a view."""
        if not self._last:  # (g, c, rows, ...), else (images, rows, ..., g, c)
            return merged(block, 2, block.ndim)
        matrix = merged(block, 0, block.ndim - 2)
        return None if matrix is None else matrix.swapaxes(0, 1)


def _unit(matrices: Array, axis: int) -> bool:
    return matrices.shape[axis] == 1 or matrices.strides[axis] == matrices.itemsize
