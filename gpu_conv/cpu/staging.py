"""Input side: one image at a time, padded, cropped and converted, in the axis order that a strategy works in.

Only what the outputs read is staged. Where nothing has to be padded or converted, the image itself is used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .prepared import Step
from .scratch import Array, Spec
from .views import cut, working_order


def copying(goal: Array, source: Array, zero_point: Array | None, channels_last: bool) -> Iterator[Step]:
    """``goal = source - zero_point`` in the dtype of ``goal``; both in working order."""
    if not channels_last and goal.ndim > 3 and _gathers(goal, source):
        for row in range(goal.shape[2]):
            yield _copy(goal[:, :, row], source[:, :, row], zero_point)
    else:
        yield _copy(goal, source, zero_point)


def _gathers(goal: Array, source: Array) -> bool:
    """Whether channels that lie side by side go to planes: row by row the lines of x stay cached, 3 times faster."""
    channels = goal.shape[0] * goal.shape[1]
    return channels >= 16 and goal.shape[-1] > 1 and abs(source.strides[-1]) > source.itemsize


def _copy(goal: Array, source: Array, zero_point: Array | None) -> Step:
    if zero_point is None:
        return partial(np.copyto, goal, source, casting="unsafe")
    return partial(np.subtract, source, zero_point, out=goal, dtype=goal.dtype, casting="unsafe")


@dataclass(frozen=True)
class _Axis:
    """One spatial axis: which positions of x are read, and where they lie in the padded axis."""

    size: int  # of x
    length: int  # of the padded axis: what the outputs read
    lo: int

    @property
    def read(self) -> slice:
        start = max(0, -self.lo)
        return slice(start, max(start, min(self.size, self.length - self.lo)))

    @property
    def inside(self) -> bool:
        return self.lo <= 0 and self.length - self.lo <= self.size

    def phase(self, p: int, step: int) -> tuple[slice, slice]:
        """(positions of x, positions in phase p): every ``step``-th position of the padded axis starting at ``p``."""
        first = -(-(self.read.start + self.lo - p) // step)
        count = max(0, -(-(self.read.stop + self.lo - p) // step) - first)
        source = first * step + p - self.lo
        return slice(source, source + count * step, step), slice(first, first + count)


@dataclass(frozen=True)
class Staged:
    """Working memory for one image.

    Attributes:
        work: ``(phases, *shape)`` in working order.
        parts: of each phase, the elements of x, the view that takes them, and the views around it, which are zero.
    """

    work: Array
    parts: list[tuple[tuple[slice, ...], Array, list[Array]]]


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
        *rows, columns = (a.length for a in self._axes)
        padded, channels = (*rows, -(-columns // phases)), problem.x.shape[1:3]
        self.shape = (*padded, *channels) if channels_last else (*channels, *padded)
        inside = phases == 1 and all(axis.inside for axis in self._axes)
        self._as_is = inside and problem.x.dtype == carrier.name and not problem.x_zero_point
        self._read = None if all(a.read == slice(0, a.size) for a in self._axes) else [a.read for a in self._axes]

    @property
    def spec(self) -> Spec:
        """The working memory that :meth:`frame` wants; empty where an image is always used as it is."""
        return ((0,) if self._as_is and not self._dense else (self._phases, *self.shape)), self._carrier

    def frame(self, work: Array) -> Staged:
        """Working memory and its views."""
        return Staged(work, [self._part(work[p], p) for p in range(self._phases)] if work.ndim > 1 else [])

    def steps(self, x: Array, i: int, staged: Staged, zero_point: Array | None) -> Generator[Step, None, Array]:
        """Image i of the batch x ``(n, g, c, *spatial)``: x itself where possible, else ``staged.work`` filled.

        Returns:
            ``(phases, *self.shape)``.
        """
        image = x[i]
        if self._as_is:
            view = working_order(image if self._read is None else cut(image, self._read), self._last)
            if not self._dense or self._is_dense(view):
                return view[np.newaxis]
        for read, interior, around in staged.parts:
            for border in around:
                yield partial(border.fill, 0)
            yield from copying(interior, working_order(cut(image, read), self._last), zero_point, self._last)
        return staged.work

    def _is_dense(self, view: Array) -> bool:
        if view.flags.c_contiguous:
            return True
        wanted = self._carrier.itemsize
        for axis in range(view.ndim - 1, view.ndim - 4 if self._last else 1, -1):
            if view.shape[axis] > 1 and view.strides[axis] != wanted:
                return False
            wanted *= view.shape[axis]
        return True

    def _part(self, plane: Array, p: int) -> tuple[tuple[slice, ...], Array, list[Array]]:
        *rows, columns = self._axes
        pairs = [*(axis.phase(0, 1) for axis in rows), columns.phase(p, self._phases)]
        around = []
        for axis, (_, target) in enumerate(pairs, 0 if self._last else 2):
            before = (slice(None),) * axis
            for border in (slice(0, target.start), slice(target.stop, plane.shape[axis])):
                if border.start < border.stop:
                    around.append(plane[(*before, border)])
        goal = (*(() if self._last else (slice(None),) * 2), *(target for _, target in pairs))
        return tuple(source for source, _ in pairs), plane[goal], around
