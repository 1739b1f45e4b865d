"""Depthwise, channels first: the flat shift.

A padded channel is one long vector in which every tap is a constant offset, so a whole channel is multiplied by a tap
in one pass; the outputs that wrap around the end of a row are computed and dropped. The taps along the last axis are
summed one after another: were they an axis of the same einsum, NumPy would choose that short axis as the inner loop.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..layout import contiguous_strides
from ..problem import ConvProblem
from .epilogue import Epilogue
from .prepared import Prepared, Step, not_a_gemm
from .scratch import Array, Workspace
from .staging import Staging
from .views import strided

BLOCK = 1 << 16  # elements of a block of channels: it stays in the L2 cache from tap to tap


class FlatShift(Prepared):
    """One input channel per group, channels first."""

    name = "depthwise_flat"

    @classmethod
    def refuses(cls, problem: ConvProblem) -> str | None:
        if problem.in_per_group != 1 or problem.rank == 0:
            return "it needs one input channel per group and a spatial axis"
        return not_a_gemm(problem)

    def __init__(self, problem: ConvProblem, weights: Array, bias: Array | None, carrier: np.dtype[Any]) -> None:
        super().__init__(problem, weights, bias, carrier)
        self._staging = Staging(problem, carrier, channels_last=False, phases=problem.strides[-1])
        self._weights = np.ascontiguousarray(np.moveaxis(weights[:, :, 0], 0, 1), carrier)  # (o, g, *taps)
        biases = [None] * problem.out_per_group if bias is None else bias.reshape(problem.groups, -1).T
        self._epilogues = [Epilogue(problem, b, carrier, channels_last=False) for b in biases]

        lead, columns = problem.out_spatial[:-1], problem.out_spatial[-1]
        pitch = contiguous_strides(self._staging.shape[2:])[:-1]  # elements between rows, between slices ...
        flatten = all(s == 1 for s in problem.strides[:-1])
        self._lead_pitch = () if flatten else tuple(s * p for s, p in zip(problem.strides, pitch, strict=False))
        self._tap_pitch = tuple(d * p for d, p in zip(problem.dilations, pitch, strict=False))
        self._lead = () if flatten else lead
        self._length = sum((n - 1) * p for n, p in zip(lead, pitch, strict=True)) + columns if flatten else columns
        # The sums of one channel, with the row pitch of the padded input where rows are not told apart.
        self._sums = (*lead[:1], *self._staging.shape[3:]) if flatten and lead else problem.out_spatial
        out, taps = "bcdefghijk"[: len(self._lead)], "lmnopqrstu"[: len(lead)]
        self._subscripts = f"a{out}{taps}z,a{taps}->a{out}z"
        self._channels = min(problem.groups, max(1, BLOCK // prod(self._sums)))
        block = ((self._channels, *self._sums), carrier)
        specs = self._staging.spec, block, block
        self._workspace = Workspace(specs, lambda work, *sums: (self._staging.frame(work), sums))

    @property
    def workspace_bytes(self) -> int:
        return self._workspace.nbytes

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        staged, scratch = self._workspace()
        for i in range(self.problem.batch):
            planes = (yield from self._staging.steps(x[i], staged, zero_point))[:, :, 0]
            for start in range(0, self.problem.groups, self._channels):
                part = slice(start, min(start + self._channels, self.problem.groups))
                for o, epilogue in enumerate(self._epilogues):
                    sums = yield from self._taps(planes[:, part], self._weights[o, part], *scratch)
                    rest = None if residual is None else residual[i, part, o]
                    yield from epilogue.steps(sums, y[i, part, o], rest, part)

    def _taps(self, planes: Array, weights: Array, sums: Array, term: Array) -> Generator[Step, None, Array]:
        """Sums of a block of channels, ``(channels, *out_spatial)``."""
        p = self.problem
        sums, term = sums[: len(weights)], term[: len(weights)]
        for k in range(p.filter[-1]):
            first, plane = divmod(k * p.dilations[-1], p.strides[-1])
            window = self._window(planes[plane], first, weights.shape[1:-1])
            yield partial(np.einsum, self._subscripts, window, weights[..., k], out=self._run_of(term if k else sums))
            if k:
                yield partial(np.add, sums, term, out=sums)
        return sums[(slice(None), *(slice(n) for n in p.out_spatial))]

    def _window(self, plane: Array, first: int, taps: tuple[int, ...]) -> Array:
        item = plane.itemsize
        strides = (plane.strides[0], *(n * item for n in (*self._lead_pitch, *self._tap_pitch)), item)
        return strided(plane, plane.ndim - 1, first, (len(plane), *self._lead, *taps, self._length), strides)

    def _run_of(self, sums: Array) -> Array:
        """The part of the sums that one einsum writes: whole channels as vectors where rows are not told apart."""
        return sums if self._lead else sums.reshape(len(sums), -1)[:, : self._length]
