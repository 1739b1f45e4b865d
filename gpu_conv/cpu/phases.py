"""Dilated inputs (transposed convolutions) as a few ordinary convolutions; see :mod:`gpu_conv.phases`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..phases import split
from ..problem import ConvProblem
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
        self._parts = [
            (phase.outputs, build(phase.problem, cut(weights, phase.taps), bias, carrier)) for phase in split(problem)
        ]
        self.name = "phases: " + ", ".join(sorted({part.name for _, part in self._parts}))  # type: ignore[misc]

    @property
    def workspace_bytes(self) -> int:
        return max(part.workspace_bytes for _, part in self._parts)

    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        for outputs, part in self._parts:
            rest = None if residual is None else cut(residual, outputs)
            yield from part._steps(x, cut(y, outputs), rest, zero_point)
