"""Input side: one image at a time, padded, cropped and converted, in the axis order that a strategy works in.

Only what the outputs read is staged. Where nothing has to be padded or converted, the image itself is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .scratch import Array, Spec
from .views import cut, working_order


def copy(goal: Array, source: Array, zero_point: Array | None) -> None:
    """``source - zero_point`` in the dtype of ``goal``; both ``(a, b, rows, ...)`` or in any other order."""
    if goal.ndim > 3 and _gathers(goal, source):
        for row in range(goal.shape[2]):
            copy(goal[:, :, row], source[:, :, row], zero_point)
    elif zero_point is None:
        np.copyto(goal, source, casting="unsafe")
    else:
        np.subtract(source, zero_point, out=goal, dtype=goal.dtype, casting="unsafe")


def _gathers(goal: Array, source: Array) -> bool:
    """Whether channels that lie side by side go to planes: row by row the lines of x stay cached, 3 times faster."""
    channels = goal.shape[0] * goal.shape[1]
    return channels >= 16 and abs(goal.strides[-1]) == goal.itemsize and abs(source.strides[-1]) > source.itemsize


@dataclass(frozen=True)
class _Axis:
    """One spatial axis: which positions of x are read, and where they lie in the padded axis."""

    size: int  # of x
    length: int  # of the padded axis: what the outputs read
    lo: int

    @property
    def read(self) -> tuple[int, int]:
        start = max(0, -self.lo)
        return start, max(start, min(self.size, self.length - self.lo))

    @property
    def inside(self) -> bool:
        return self.lo <= 0 and self.length - self.lo <= self.size

    def phase(self, p: int, step: int) -> tuple[slice, slice, int]:
        """(positions of x, positions in phase p, length of phase p): every ``step``-th position starting at ``p``."""
        start, stop = self.read
        length = -(-(self.length - p) // step)
        first = -(-(start + self.lo - p) // step)
        count = max(0, -(-(stop + self.lo - p) // step) - first)
        source = first * step + p - self.lo
        return slice(source, source + count * step, step), slice(first, first + count), length


class Staging:
    """Padding, cropping and conversion of one input.

    Args:
        problem: what is convolved; input dilations must be 1.
        carrier: dtype to compute in.
        channels_last: whether the staged image is ``(*spatial, g, c)``, or ``(g, c, *spatial)``.
        phases: split the last spatial axis into this many interleaved planes (a new leading axis): the columns that
            one tap of a strided convolution reads then lie side by side.
        dense: whether the last axes must lie in memory without gaps: last spatial axis and channels with
            ``channels_last``, all spatial axes otherwise.
    """

    def __init__(
        self, problem: ConvProblem, carrier: np.dtype[Any], channels_last: bool, phases: int = 1, dense: bool = True
    ) -> None:
        geometry = zip(
            problem.in_spatial, problem.out_spatial, problem.strides, problem.filter, problem.dilations, strict=True
        )
        self._axes = [
            _Axis(size, (out - 1) * s + (k - 1) * d + 1, lo)
            for (size, out, s, k, d), (lo, _) in zip(geometry, problem.padding, strict=True)
        ]
        self._carrier, self._last, self._phases, self._dense = carrier, channels_last, phases, dense
        inside = phases == 1 and all(axis.inside for axis in self._axes)
        padded = [a.length for a in self._axes]
        if padded:
            padded[-1] = -(-padded[-1] // phases)
        channels = problem.x.shape[1:3]
        self.shape = (*padded, *channels) if channels_last else (*channels, *padded)
        convert = problem.x.dtype != carrier.name or problem.x_zero_point
        self._as_is = inside and not convert

    @property
    def spec(self) -> Spec:
        """The working memory that :meth:`__call__` wants; empty where an image is always used as it is."""
        return ((0,) if self._as_is and not self._dense else (self._phases, *self.shape)), self._carrier

    def __call__(self, x: Array, i: int, work: Array, zero_point: Array | None) -> Array:
        """Image i of the batch x ``(n, g, c, *spatial)``: x itself where possible, else ``work`` filled.

        Returns:
            ``(phases, *self.shape)``.
        """
        if self._as_is:
            read = tuple(slice(*a.read) for a in self._axes)
            view = working_order(cut(x[i], read), self._last)
            if not self._dense or self._is_dense(view):
                return view[np.newaxis]
        for p in range(self._phases):
            self._fill(x[i], work[p], p, zero_point)
        return work

    def _is_dense(self, view: Array) -> bool:
        wanted = self._carrier.itemsize
        for axis in reversed(range(max(0, view.ndim - 3) if self._last else 2, view.ndim)):
            if view.shape[axis] > 1 and view.strides[axis] != wanted:
                return False
            wanted *= view.shape[axis]
        return True

    def _fill(self, image: Array, work: Array, p: int, zero_point: Array | None) -> None:
        rank = len(self._axes)
        steps = [(0, 1)] * (rank - 1) + [(p, self._phases)]
        parts = [axis.phase(*step) for axis, step in zip(self._axes, steps, strict=True)] if rank else []
        first = 0 if self._last else 2
        for axis, (_, target, _) in enumerate(parts, first):
            before = (slice(None),) * axis
            if target.start > 0:
                work[(*before, slice(0, target.start))] = 0
            if target.stop < work.shape[axis]:
                work[(*before, slice(target.stop, None))] = 0
        source = working_order(cut(image, (s for s, _, _ in parts)), self._last)
        goal = work[(slice(None),) * first + tuple(t for _, t, _ in parts)]
        copy(goal, source, zero_point)
