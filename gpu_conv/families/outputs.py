"""How the matrix products of pixels and channels store their tiles: ``kernels/pointwise_output.cuh``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..problem import ITEMSIZE, ConvProblem, Tensor
from .phased import Launched

GATHER_LINES, GATHER_CHUNKS = 0, 1  # enum Copy of kernels/pointwise_stage.cuh
_WIDTHS = (16, 8, 4, 2, 1)

Axis = tuple[int, ...]  # size, then the stride in each of some tensors


@dataclass(frozen=True)
class Outputs:
    """How a kernel walks over the pixels of y and the residual, and how wide it writes.

    Attributes:
        phases: what the launch computes.
    """

    phases: Launched

    @property
    def p(self) -> ConvProblem:
        """The convolution; of phases the one that stands for all."""
        return self.phases.problem

    @cached_property
    def y_axes(self) -> tuple[Axis, ...]:
        """Pixel axes of y and residual as (size, y stride, residual stride)."""
        p = self.p
        tensors = (p.y.strides, (p.residual or p.y).strides)
        return collapse(zip((p.batch, *p.out_spatial), *((s[0], *s[3:]) for s in tensors), strict=True))

    @cached_property
    def pixels_in_rows(self) -> bool:
        """Columns are the axis of the output whose elements lie closest together."""
        return abs(self.p.y.strides[2]) <= abs(self.y_axes[-1][1])

    @property
    def fields(self) -> dict[str, Any]:
        """What every params struct of these kernels says of the outputs: where they lie, how they are activated."""
        p, residual = self.p, self.p.residual or self.p.y
        return {
            "y_group": p.y.strides[1],
            "y_channel": p.y.strides[2],
            "y_size": field_of(self.y_axes, 0, 1),
            "y_stride": field_of(self.y_axes, 1, 0),
            "residual_group": residual.strides[1],
            "residual_channel": residual.strides[2],
            "residual_stride": field_of(self.y_axes, 2, 0),
            "alpha": p.activation.alpha if p.activation else 0.0,
            "beta": p.activation.beta if p.activation else 0.0,
        }

    @property
    def y_bytes(self) -> int:
        """Bytes per store."""
        p = self.p
        tensors = [(p.y, 1)] + ([(p.residual, 2)] if p.residual else [])
        widths = []
        for tensor, i in tensors:
            pixel_strides = [axis[i] for axis in self.y_axes]
            if self.pixels_in_rows:
                count, stride, others = p.out_per_group, tensor.strides[2], pixel_strides
            else:
                count, stride, others = self.y_axes[-1][0], pixel_strides[-1], [*pixel_strides[:-1], tensor.strides[2]]
            itemsize = ITEMSIZE[tensor.dtype]
            widest = 16 if itemsize > 1 else 8  # a warp tile may be 8 columns wide
            widths.append(
                min(widest, access_width(tensor, count, (*others, tensor.strides[1]))) if stride == 1 else itemsize
            )
        return min(widths)


def collapse(axes: Iterable[Sequence[int]]) -> tuple[Axis, ...]:
    """Merge neighbouring axes that one stride covers in every tensor; axes of length 1 vanish."""
    merged: list[Axis] = []
    for size, *strides in axes:
        if size == 1:
            continue
        if merged and all(outer == size * inner for outer, inner in zip(merged[-1][1:], strides, strict=True)):
            merged[-1] = (merged[-1][0] * size, *strides)
        else:
            merged.append((size, *strides))
    return tuple(merged) or ((1, *strides),)


def access_width(tensor: Tensor, count: int, other_strides: tuple[int, ...]) -> int:
    """Widest access in bytes along a contiguous axis of ``count`` elements, aligned under all other strides."""
    itemsize = ITEMSIZE[tensor.dtype]
    for found in _WIDTHS:
        fits = all(n * itemsize % found == 0 for n in (count, *other_strides))
        if found == itemsize or (fits and tensor.align % found == 0):
            return found
    raise AssertionError(f"no element of {tensor.dtype} is wider than {_WIDTHS[0]} bytes")


def field_of(axes: tuple[Axis, ...], field: int, fill: int) -> tuple[int, ...]:
    """One field of the axes, right-aligned to four."""
    return (fill,) * (4 - len(axes)) + tuple(axis[field] for axis in axes)
