"""Which part of the input a chunk of the output needs: plans per axis, as plain arithmetic on chunk sizes.

A convolution is a product of independent axes. Along each of them an output chunk reads one range of the input; what
its windows reach beyond the input is that tile's padding. So every tile is an ordinary convolution of its own, exact
for any stride, dilation, padding and chunking, and no tile multiplies anything that the whole would not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ..problem import ConvProblem

Chunks = tuple[int, ...]
Range = tuple[int, int | None]  # arguments of a slice

ALL: Range = (0, None)


@dataclass(frozen=True)
class Part:
    """One output chunk along one axis.

    Attributes:
        length: of the output chunk.
        read: first and last + 1 of the input's elements that it needs.
        padding: ``(lo, hi)`` of the tile along a spatial axis; negative crops.
        groups, filters: which groups, and which filters of each of them, a chunk of output channels consists of.
        channels: the output channels themselves.
    """

    length: int
    read: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    groups: Range = ALL
    filters: Range = ALL
    channels: Range = ALL


def ranges(chunks: Iterable[int]) -> list[tuple[int, int]]:
    """First and last + 1 of every chunk."""
    return list(pairwise(accumulate(chunks, initial=0)))


@dataclass(frozen=True)
class Spatial:
    """One spatial axis of a convolution, as in :class:`gpu_conv.problem.ConvProblem`."""

    size: int
    out: int
    k: int
    stride: int
    lo: int
    dilation: int
    input_dilation: int

    @classmethod
    def of(cls, p: ConvProblem) -> list[Spatial]:
        """The axes of a problem."""
        lows = [lo for lo, _ in p.padding]
        axes = zip(p.in_spatial, p.out_spatial, p.filter, p.strides, lows, p.dilations, p.input_dilations, strict=True)
        return [cls(*axis) for axis in axes]

    @property
    def window(self) -> int:
        """Positions of the (dilated) input from the first to the last tap."""
        return (self.k - 1) * self.dilation + 1

    def follow(self, chunks: Chunks) -> Chunks:
        """Output chunks of the windows whose middle lies nearest to that input chunk."""
        half = 2 * self.lo - self.window + 1  # twice the distance from an output's place to the middle of its window
        twice = ((2 * stop - 1) * self.input_dilation + half for _, stop in ranges(chunks)[:-1])
        cuts = [between // (2 * self.stride) + 1 for between in twice]
        inside = [0, *(min(self.out, max(0, cut)) for cut in cuts), self.out]
        return tuple(b - a for a, b in pairwise(inside) if b > a) or (0,)

    def parts(self, chunks: Chunks) -> list[Part]:
        """What every output chunk reads, and what its windows reach beyond that."""
        return [self._part(start, stop) for start, stop in ranges(chunks)]

    def _part(self, start: int, stop: int) -> Part:
        first = start * self.stride - self.lo
        end = (stop - 1) * self.stride - self.lo + self.window
        step = self.input_dilation
        a, b = max(0, -(-first // step)), min(self.size, (end - 1) // step + 1)
        if b <= a:  # padding alone: one element is read and cropped again, for no kernel likes empty arrays
            a = min(a, max(0, self.size - 1))
            b = min(a + 1, self.size)
        return Part(stop - start, (a, b), padding=(a * step - first, end - max(0, (b - 1) * step + 1)))


@dataclass(frozen=True)
class Plan:
    """Chunks and parts of one convolution, along its axes: batch, channels, spatial axes.

    Args:
        problem: of the whole.
        batch_groups: as in :func:`gpu_conv.conv`; more than one tie the batch and the channels together, and neither
            can be chunked.
    """

    problem: ConvProblem
    batch_groups: int

    def follow(self, chunks: Sequence[Chunks]) -> list[Chunks]:
        """Chunks of the output that follow those of the input."""
        batch, channels, *spatial = chunks
        p = self.problem
        if self.batch_groups > 1:
            batch = (p.batch,)
        inner = [axis.follow(c) for axis, c in zip(Spatial.of(p), spatial, strict=True)]
        return [batch, self._follow_groups(channels), *inner]

    def _follow_groups(self, chunks: Chunks) -> Chunks:
        """Groups that the same chunk of input channels holds, for the larger part."""
        p = self.problem
        if self.batch_groups > 1 or not p.in_per_group or not p.out_per_group:
            return (p.out_channels,)
        cuts = sorted({round(stop / p.in_per_group) for _, stop in ranges(chunks)})
        return tuple((b - a) * p.out_per_group for a, b in pairwise([0, *cuts]) if b > a) or (0,)

    def parts(self, chunks: Sequence[Chunks]) -> list[list[Part]]:
        """What every chunk of the output reads.

        Raises:
            ValueError: chunks of channels or of the batch that cannot be computed separately.
        """
        batch, channels, *spatial = chunks
        inner = [axis.parts(c) for axis, c in zip(Spatial.of(self.problem), spatial, strict=True)]
        if self.batch_groups > 1:
            return [*self._tied(batch, channels), *inner]
        images = [Part(stop - start, (start, stop)) for start, stop in ranges(batch)]
        return [images, self._channels(channels), *inner]

    def _tied(self, batch: Chunks, channels: Chunks) -> list[list[Part]]:
        p = self.problem
        if len(batch) > 1 or len(channels) > 1:
            raise ValueError(
                f"batch_groups={self.batch_groups} needs all {p.batch} images and all {p.out_channels} channels of the "
                f"output in one chunk, got {batch} and {channels}"
            )
        return [[Part(p.batch, (0, p.batch * self.batch_groups))], [Part(p.out_channels, (0, p.in_per_group))]]

    def _channels(self, chunks: Chunks) -> list[Part]:
        """Whole groups, or some filters of one group."""
        per_group, inputs = self.problem.out_per_group, self.problem.in_per_group
        parts = []
        for start, stop in ranges(chunks):
            (first, skipped), (last, rest) = divmod(start, per_group), divmod(stop, per_group)
            filters = ALL
            if skipped or rest:
                if first != (stop - 1) // per_group:
                    raise ValueError(
                        f"chunks of output channels {chunks}: channels {start} to {stop - 1} are neither whole groups "
                        f"(of {per_group} channels) nor part of one"
                    )
                last, filters = first + 1, (skipped, skipped + stop - start)
            read = (first * inputs, last * inputs)
            parts.append(Part(stop - start, read, (0, 0), (first, last), filters, (start, stop)))
        return parts


def pieces(edges: Sequence[int], start: int, stop: int) -> list[tuple[int, tuple[int, int]]]:
    """The chunks that hold a range: index of each, and the part of the range within it; one empty one if none does.

    Args:
        edges: starts of the chunks, and the end of the last one.
        start, stop: the range.
    """
    found = []
    i = bisect_right(edges, start) - 1
    while start < stop:
        end = min(stop, edges[i + 1])
        if start < end:
            found.append((i, (start - edges[i], end - edges[i])))
        start, i = end, i + 1
    return found or [(0, (0, 0))]
