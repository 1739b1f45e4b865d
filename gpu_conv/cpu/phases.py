"""Dilated inputs (transposed convolutions) as a few ordinary convolutions.

With ``P = input_dilation / gcd(stride, input_dilation)`` the outputs ``q = r, r + P, r + 2 P ...`` of an axis meet
elements of x, not the zeros between them, with the same taps: every combination of phases r is a convolution of the
undilated input with some of the taps, writing to a strided view of y. No zero is multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import gcd
from typing import Any

import numpy as np

from ..problem import ConvProblem, Tensor
from .prepared import Prepared, Step
from .scratch import Array
from .views import cut

Build = Callable[[ConvProblem, Array, "Array | None", "np.dtype[Any]"], Prepared]


class Phases(Prepared):
    """A dilated input. ``build`` prepares the convolutions of the phases."""

    name = "phases"

    @classmethod
    def refuses(cls, problem: ConvProblem) -> str | None:
        if problem.y.size == 0 or problem.taps == 0:
            return "nothing is multiplied"
        return None if any(d > 1 for d in problem.input_dilations) else "the input is not dilated"

    def __init__(
        self, problem: ConvProblem, weights: Array, bias: Array | None, carrier: np.dtype[Any], build: Build
    ) -> None:
        super().__init__(problem, weights, bias, carrier)
        self._parts = []
        for phases in product(*(_phases(problem, axis) for axis in range(problem.rank))):
            part = cut(weights, (phase.taps for phase in phases))
            outputs = tuple(phase.outputs for phase in phases)
            self._parts.append((outputs, build(_problem(problem, part, phases), part, bias, carrier)))
        self.name = "phases: " + ", ".join(sorted({part.name for _, part in self._parts}))  # type: ignore[misc]

    @property
    def workspace_bytes(self) -> int:
        return max(part.workspace_bytes for _, part in self._parts)

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        for outputs, part in self._parts:
            rest = None if residual is None else cut(residual, outputs)
            yield from part._steps(x, cut(y, outputs), rest, zero_point)


@dataclass(frozen=True)
class _Phase:
    """Outputs of one axis that read the same taps, as a convolution of the undilated input."""

    outputs: slice
    taps: slice
    stride: int
    lo: int
    hi: int
    dilation: int


def _phases(problem: ConvProblem, axis: int) -> Iterator[_Phase]:
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
        yield _Phase(slice(r, None, period), slice(first, None, apart), stride, before, after, dilation)


def _problem(problem: ConvProblem, weights: Array, phases: tuple[_Phase, ...]) -> ConvProblem:
    outputs = tuple(phase.outputs for phase in phases)

    def of(tensor: Tensor) -> Tensor:
        rest = tensor.shape[3:]
        shape = (*tensor.shape[:3], *(len(range(*o.indices(n))) for o, n in zip(outputs, rest, strict=True)))
        strides = (*tensor.strides[:3], *(s * o.step for s, o in zip(tensor.strides[3:], outputs, strict=True)))
        return replace(tensor, shape=shape, strides=strides, align=1)

    return replace(
        problem,
        w=replace(problem.w, shape=weights.shape, strides=(0,) * weights.ndim),
        y=of(problem.y),
        residual=None if problem.residual is None else of(problem.residual),
        strides=tuple(phase.stride for phase in phases),
        padding=tuple((phase.lo, phase.hi) for phase in phases),
        dilations=tuple(phase.dilation for phase in phases),
        input_dilations=(1,) * problem.rank,
    )
