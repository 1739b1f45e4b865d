"""What every strategy offers: a name, its memory, and ``run``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from ..problem import ConvProblem
from .scratch import Array, thread_block

Step = Callable[[], object]

AHEAD = 16  # steps that are made before they run: between them Python finds its code gone from the caches (1 to 5 %)


class Bound:
    """One run with its arrays. Calling it computes; one thread at a time, for they would write the same ``y``."""

    def __init__(self, steps: Callable[[], Iterator[Step]]) -> None:
        self._make = steps
        self._known: tuple[Array | None, list[Step]] = None, []

    def __call__(self) -> None:
        """Compute ``y`` from what is in ``x`` now."""
        block, steps = self._known
        if block is not thread_block():
            steps = list(self._make())
            self._known = thread_block(), steps
        with np.errstate(all="ignore"):
            for step in steps:
                step()


class Prepared(ABC):
    """One convolution with its weights packed; usable from several threads at once.

    Args:
        problem: what to compute.
        weights: the filter ``(g, o, c, *filter)`` without its zero point.
        bias: ``(g * o,)`` or None.
        carrier: dtype of products and sums: ``problem.accumulate``, or a float that holds its integers exactly.

    Attributes:
        name: of the strategy, for ``explain``.
    """

    name: ClassVar[str]

    def __init__(self, problem: ConvProblem, weights: Array, bias: Array | None, carrier: np.dtype[Any]) -> None:
        self.problem = problem
        self.carrier = carrier

    @classmethod
    @abstractmethod
    def refuses(cls, problem: ConvProblem) -> str | None:
        """Why this strategy cannot compute the problem, in one line; None if it can."""

    @property
    @abstractmethod
    def workspace_bytes(self) -> int:
        """Memory that a run uses beyond operands and packed weights; taken from the thread's scratch block."""

    def run(self, x: Array, y: Array, residual: Array | None = None, x_zero_point: Array | int | None = None) -> None:
        """Convolve ``x`` into ``y``.

        Args:
            x: ``(n, g, c, *spatial)``, any strides.
            y: ``(n, g, o, *out_spatial)``, any strides; written. Shares no memory with ``x``.
            residual: added before the activation, shaped like ``y``; may be ``y`` itself.
            x_zero_point: the integer to subtract from ``x``; wanted exactly if ``problem.x_zero_point``.
        """
        steps = self._steps(x, y, residual, self._zero_point(x_zero_point))
        with np.errstate(all="ignore"):  # Inf and NaN are data here, and integers wrap
            while batch := list(islice(steps, AHEAD)):
                for step in batch:
                    step()

    def bind(self, x: Array, y: Array, residual: Array | None = None, x_zero_point: Array | int | None = None) -> Bound:
        """:meth:`run` for arrays that stay where they are: the views of them are made once, not in every call.

        Saves 20 to 40 us per call, a quarter of the time of MobileNetV2. The result keeps the arrays alive.
        """
        return Bound(partial(self._steps, x, y, residual, self._zero_point(x_zero_point)))

    def _zero_point(self, value: Array | int | None) -> Array | None:
        return np.asarray(value, np.int32).reshape(()) if self.problem.x_zero_point else None

    @abstractmethod
    def _steps(self, x: Array, y: Array, residual: Array | None, zero_point: Array | None) -> Iterator[Step]:
        """What a run does, in order: calls without arguments, each on views of operands and of the workspace."""

    def _in_place(self, y: Array, residual: Array | None) -> bool:
        """Whether sums may be collected in y itself."""
        return y.dtype == self.carrier and (residual is None or not np.may_share_memory(y, residual))


def not_a_gemm(problem: ConvProblem, dilated: bool = False) -> str | None:
    """Why fast multiplication of floats cannot compute the problem, whose input must be dilated or must not be."""
    if problem.y.size == 0 or problem.taps == 0:
        return "nothing is multiplied"
    if any(d > 1 for d in problem.input_dilations) is not dilated:
        return "the input is not dilated" if dilated else "the input is dilated"
    if problem.x.dtype not in _FAST:
        return f"{problem.x.dtype} products have no fast path in NumPy"
    return None


_FAST = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "int8", "uint8")
