"""Dense and grouped convolutions of any rank: blocks of the output as matrix products.

The columns of a block (every input element that its outputs read, once per tap) are copied through one overlapping view
of the staged image and multiplied while they lie in the cache. The copy is bounded by ``COLUMNS``, whatever the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..problem import ConvProblem
from .epilogue import Epilogue
from .prepared import Prepared, Step, not_a_gemm
from .scratch import Array, Workspace
from .staging import Staging
from .views import channels_are_last, cut, merged, windows_of_runs, working_order

Box = tuple[slice, ...]  # a part of the output grid, one slice per spatial axis

COLUMNS = 1 << 18  # elements of the columns of a block: 1 MiB in float32
NARROW = 16  # input channels per group below which a tap's run is too short with channels last: runs of pixels instead


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
        self._weights = _packed(weights, carrier, self._last)
        self._staging = Staging(problem, carrier, self._last, dense=False)
        shaped = None if bias is None else bias.reshape(problem.y.shape[1:3])
        self._epilogue = Epilogue(problem, shaped, carrier, self._last)
        largest = max(problem.taps, problem.out_channels)
        self._boxes = list(_boxes(problem.out_spatial, max(1, COLUMNS // largest)))
        pixels = max(prod(s.stop - s.start for s in box) for box in self._boxes)
        specs = self._staging.spec, ((pixels * problem.taps,), carrier), ((pixels * problem.out_channels,), carrier)
        self._workspace = Workspace(specs, lambda work, columns, sums: (self._staging.frame(work), columns, sums))

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        staged, columns, scratch = self._workspace()
        direct = self._in_place(y, residual)
        for i in range(self.problem.batch):
            windows = self._windows((yield from self._staging.steps(x, i, staged, zero_point))[0])
            target = working_order(y[i], self._last)
            rest = None if residual is None else working_order(residual[i], self._last)
            for box in self._boxes:
                part = box if self._last else (slice(None), slice(None), *box)
                block = target[part]
                products = self._matrices(block) if direct else None
                sums = block
                if products is None:
                    sums = scratch[: block.size].reshape(block.shape)
                    products = self._matrices(sums)
                for g in range(self.problem.groups):  # one at a time: its columns stay in the cache
                    yield from self._multiply(windows, box, g, columns, products)
                yield from self._epilogue.steps(sums, block, None if rest is None else rest[part])

    def _windows(self, image: Array) -> Array:
        """``(g, *out_spatial, *filter, c)`` or ``(g, c, *filter, *out_spatial)``: what every output reads."""
        p = self.problem
        *spatial, group, channel = image.strides if self._last else (*image.strides[2:], *image.strides[:2])
        steps = tuple(s * b for s, b in zip(p.strides, spatial, strict=True))
        taps = tuple(d * b for d, b in zip(p.dilations, spatial, strict=True))
        if self._last:
            shape = (p.groups, *p.out_spatial, *p.filter, p.in_per_group)
            return windows_of_runs(image, shape, (group, *steps, *taps, channel), keep=1 + p.rank)
        shape = (p.groups, p.in_per_group, *p.filter, *p.out_spatial)
        return as_strided(image, shape, (group, channel, *taps, *steps))

    def _multiply(self, windows: Array, box: Box, g: int, columns: Array, products: Any) -> Iterator[Step]:
        taps = self.problem.taps
        window = windows[g][box] if self._last else cut(windows[g], box)
        block = columns[: products[g].size // self.problem.out_per_group * taps]
        yield partial(np.copyto, block.view(window.dtype).reshape(window.shape), window)
        if self._last:
            yield partial(np.matmul, block.reshape(-1, taps), self._weights[g], out=products[g])
        else:
            yield partial(np.matmul, self._weights[g], block.reshape(taps, -1), out=products[g])

    def _matrices(self, block: Array) -> Array | None:
        """A block as matrices ``(g, pixels, o)`` or ``(g, o, pixels)`` that BLAS can write, or None."""
        if self._last:
            pixels = merged(block, 0, block.ndim - 2)
            matrices = None if pixels is None else pixels.swapaxes(0, 1)
        else:
            matrices = merged(block, 2, block.ndim)
        return matrices if matrices is not None and matrices.strides[-1] == matrices.itemsize else None


def _packed(weights: Array, carrier: np.dtype[Any], channels_last: bool) -> Array:
    """Filters as the matrices that multiply the columns: ``(g, taps * c, o)`` or ``(g, o, c * taps)``."""
    if channels_last:
        g, o, c, *taps = weights.shape
        packed = np.empty((g, *taps, c, o), carrier)
        source = weights.transpose(0, *range(3, weights.ndim), 2, 1)
        for i in range(0, c, 4):  # 3 times faster than in one go: the lines of the source stay cached
            packed[..., i : i + 4, :] = source[..., i : i + 4, :]
        return packed.reshape(g, -1, o)
    return np.ascontiguousarray(weights, carrier).reshape(*weights.shape[:2], -1)


def _boxes(sizes: tuple[int, ...], limit: int) -> Iterator[Box]:
    """Contiguous boxes of at most ``limit`` points: whole inner axes, a part of one, single outer points."""
    inner, axis = 1, len(sizes)
    while axis and inner * sizes[axis - 1] <= limit:
        axis -= 1
        inner *= sizes[axis]
    if not axis:
        yield tuple(slice(0, n) for n in sizes)
        return
    cut = max(1, limit // inner)
    starts = [range(n) for n in sizes[: axis - 1]] + [range(0, sizes[axis - 1], cut)]
    for corner in product(*starts):
        box = [slice(c, c + 1) for c in corner[:-1]] + [slice(corner[-1], min(corner[-1] + cut, sizes[axis - 1]))]
        yield (*box, *(slice(0, n) for n in sizes[axis:]))
