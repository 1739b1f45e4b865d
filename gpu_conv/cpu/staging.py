"""Input side: an image, or some rows of it, padded, cropped and converted, in the axis order of a strategy.

Only what the outputs read is staged. Where nothing has to be padded or converted, the image itself is used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .prepared import Step
from .scratch import Array, Spec


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
    """Working memory for what is staged of one image.

    Attributes:
        work: ``(phases, *shape)`` in working order.
        borders: zero what lies around the elements of x.
        parts: of each phase, which elements of x it holds, and the view that takes them, in working order.
    """

    work: Array
    borders: list[Step]
    parts: list[tuple[tuple[slice, ...], Array]]


class Staging:
    """Padding, cropping and conversion of one input, or of the part of it that some rows of the output read.

    Args:
        problem: what is convolved; input dilations must be 1.
        carrier: dtype to compute in.
        channels_last: whether the staged image is ``(*spatial, g, c)``, or ``(g, c, *spatial)``.
        phases: split the last spatial axis into this many interleaved planes (a new leading axis): the columns that
            one tap of a strided convolution reads then lie side by side.
        dense: whether the last axes must lie in memory without gaps: last spatial axis and channels with
            ``channels_last``, all spatial axes otherwise.
        rows: which outputs along the first of several spatial axes; all by default. Later rows come into the working
            memory of the first, whose other borders they share.
    """

    def __init__(
        self,
        problem: ConvProblem,
        carrier: np.dtype[Any],
        channels_last: bool,
        phases: int = 1,
        dense: bool = True,
        rows: slice | None = None,
    ) -> None:
        rows = rows or slice(0, problem.out_spatial[0])
        outputs = [rows, *(slice(0, n) for n in problem.out_spatial[1:])]
        steps = zip(problem.strides, problem.filter, problem.dilations, strict=True)
        self._axes = [
            _Axis(size, (out.stop - out.start - 1) * s + (k - 1) * d + 1, lo - out.start * s)
            for size, out, (lo, _), (s, k, d) in zip(problem.in_spatial, outputs, problem.padding, steps, strict=True)
        ]
        self._carrier, self._last, self._phases, self._dense = carrier, channels_last, phases, dense
        self._follows = rows.start > 0
        *lead, columns = (a.length for a in self._axes)
        padded, channels = (*lead, -(-columns // phases)), problem.x.shape[1:3]
        self.shape = (*padded, *channels) if channels_last else (*channels, *padded)
        inside = phases == 1 and all(axis.inside for axis in self._axes)
        self._as_is = inside and problem.x.dtype == carrier.name and not problem.x_zero_point
        self._read = self._index(axis.read for axis in self._axes)

    @property
    def spec(self) -> Spec:
        """The working memory that :meth:`frame` wants; empty where an image is always used as it is."""
        return ((0,) if self._as_is and not self._dense else (self._phases, *self.shape)), self._carrier

    def frame(self, work: Array) -> Staged:
        """Working memory, what clears its borders, and its views."""
        staged = Staged(work, [], [])
        for p in range(self._phases if work.ndim > 1 else 0):
            self._add_phase(staged, p)
        return staged

    def steps(self, image: Array, staged: Staged, zero_point: Array | None) -> Generator[Step, None, Array]:
        """An image in working order: itself where possible, else ``staged.work`` filled.

        Returns:
            ``(phases, *self.shape)``.
        """
        if self._as_is:
            view = image[self._read]
            if not self._dense or self._is_dense(view):
                return view[np.newaxis]
        yield from staged.borders
        for read, interior in staged.parts:
            yield from copying(interior, image[read], zero_point, self._last)
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

    def _index(self, spatial: Iterable[slice]) -> tuple[slice, ...]:
        """Spatial positions of an image in working order."""
        return tuple(spatial) if self._last else (slice(None), slice(None), *spatial)

    def _add_phase(self, staged: Staged, p: int) -> None:
        plane = staged.work[p]
        *rows, columns = self._axes
        pairs = [*(axis.phase(0, 1) for axis in rows), columns.phase(p, self._phases)]
        for axis, (_, target) in enumerate(pairs[: 1 if self._follows else None], 0 if self._last else 2):
            before = (slice(None),) * axis
            for border in (slice(0, target.start), slice(target.stop, plane.shape[axis])):
                if border.start < border.stop:
                    staged.borders.append(partial(plane[(*before, border)].fill, 0))
        goal = plane[self._index(target for _, target in pairs)]
        staged.parts.append((self._index(source for source, _ in pairs), goal))
