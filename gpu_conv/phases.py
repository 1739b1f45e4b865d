"""A dilated input (a transposed convolution) as a few ordinary convolutions that multiply no zeros.

With ``P = input_dilation / gcd(stride, input_dilation)`` the outputs ``q = r, r + P, r + 2 P ...`` of an axis meet
elements of x, not the zeros between them, with the same taps: every combination of phases r is a convolution of the
undilated input with some of the taps, writing to a strided view of y. Nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import gcd
from typing import Any, NamedTuple

from .problem import ITEMSIZE, ConvProblem, Tensor

Slices = tuple[slice, ...]  # one per spatial axis


@dataclass(frozen=True)
class Phase:
    """One of the convolutions.

    Attributes:
        problem: the convolution of all of x with some taps, to some outputs.
        taps: those of the filter.
        outputs: those of y and of the residual.
    """

    problem: ConvProblem
    taps: Slices
    outputs: Slices

    def operands(self, whole: Mapping[str, Any]) -> dict[str, Any]:
        """The operands of the whole convolution, filter, output and residual as views."""
        views = {"w": self.taps, "y": self.outputs, "residual": self.outputs}
        return {**whole, **{n: whole[n][(..., *s)] for n, s in views.items() if whole.get(n) is not None}}


def split(problem: ConvProblem) -> tuple[Phase, ...]:
    """All phases of a problem; one, the problem itself, where the input is not dilated."""
    return tuple(_phase(problem, axes) for axes in product(*(_axis(problem, a) for a in range(problem.rank))))


class _Axis(NamedTuple):
    """Outputs of one axis that read the same taps."""

    outputs: slice
    taps: slice
    stride: int
    lo: int
    hi: int
    dilation: int


def _axis(problem: ConvProblem, axis: int) -> Iterator[_Axis]:
    size, out, k = problem.in_spatial[axis], problem.out_spatial[axis], problem.filter[axis]
    s, d, ld, lo = (
        problem.strides[axis], problem.dilations[axis], problem.input_dilations[axis], problem.padding[axis][0]
    )  # fmt: skip
    period, apart = ld // gcd(s, ld), ld // gcd(d, ld)
    stride, dilation = s // gcd(s, ld), d // gcd(d, ld)
    for r in range(min(period, out)):
        first = next((t for t in range(min(apart, k)) if (r * s + t * d - lo) % ld == 0), k)
        before = (lo - r * s - first * d) // ld
        outputs, taps = len(range(r, out, period)), len(range(first, k, apart))
        after = (outputs - 1) * stride + (taps - 1) * dilation + 1 - before - size
        yield _Axis(slice(r, None, period), slice(first, None, apart), stride, before, after, dilation)


def _phase(problem: ConvProblem, axes: tuple[_Axis, ...]) -> Phase:
    outputs, taps = tuple(axis.outputs for axis in axes), tuple(axis.taps for axis in axes)
    part = replace(
        problem,
        w=_cut(problem.w, taps),
        y=_cut(problem.y, outputs),
        residual=None if problem.residual is None else _cut(problem.residual, outputs),
        strides=tuple(axis.stride for axis in axes),
        padding=tuple((axis.lo, axis.hi) for axis in axes),
        dilations=tuple(axis.dilation for axis in axes),
        input_dilations=(1,) * problem.rank,
    )
    return Phase(part, taps, outputs)


def _cut(tensor: Tensor, slices: Slices) -> Tensor:
    axes = list(zip(tensor.shape[3:], tensor.strides[3:], slices, strict=True))
    start = abs(sum(cut.start * stride for _, stride, cut in axes)) * ITEMSIZE[tensor.dtype]
    return replace(
        tensor,
        shape=(*tensor.shape[:3], *(len(range(*cut.indices(n))) for n, _, cut in axes)),
        strides=(*tensor.strides[:3], *(stride * cut.step for _, stride, cut in axes)),
        align=min(tensor.align, start & -start) if start else tensor.align,
    )
