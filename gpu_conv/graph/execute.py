"""Running a graph: the first call with new input shapes computes and records, later calls replay the record."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from ..locks import new_lock
from .capture import Captured, refusal
from .device import location
from .ir import Array, Graph
from .plan import Plan, Replay
from .planner import Memos, Planner

MAX_PLANS = 8  # sets of input shapes remembered per graph


class Executor:
    """A graph with the plans made for it.

    Args:
        device: where convolutions are computed; None follows the arrays.
        dtype: what float32 inputs are rounded to, or None.
        capture: whether plans on the GPU become CUDA graphs when they are first run again.
    """

    def __init__(
        self, graph: Graph, device: str | None = None, dtype: np.dtype[Any] | None = None, capture: bool = False
    ) -> None:
        self._graph = graph
        self._device = device
        self._dtype = dtype
        self._capture = capture
        self._inputs = [*(p.name for p in graph.inputs), *graph.captures]
        self._memos: Memos = {}
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._lock = new_lock()

    def __call__(self, arrays: list[Array], observe: Any = None, overwrite: bool = False) -> list[Array]:
        """Outputs for the inputs (and captures), in order. One call at a time: a plan owns its buffers.

        Args:
            observe: see ``Plan.run``; a captured plan is run step by step for it.
            overwrite: whether the next call may overwrite the results.
        """
        key = tuple((type(a), a.shape, a.dtype, location(a)) for a in arrays)
        with self._lock, np.errstate(all="ignore"):  # Inf and NaN are data here
            plan = self._plans.get(key)
            if plan is not None:
                self._plans.move_to_end(key)
                captured = None if observe else self._captured(plan, arrays)
                return captured(arrays, overwrite) if captured else plan.run(arrays, observe)
            inputs = dict(zip(self._inputs, arrays, strict=True))
            plan, results = Planner(inputs, self._memos, self._device, Executor, self._dtype).record(self._graph)
            self._plans[key] = plan
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
            return plan.run(arrays, observe) if observe else results

    @property
    def plans(self) -> list[tuple[Any, Plan]]:
        """What is remembered: input types and shapes, and the plan."""
        with self._lock:
            return list(self._plans.items())

    def _captured(self, plan: Plan, arrays: list[Array]) -> Replay | None:
        """The plan's CUDA graph, made now if it is wanted and possible."""
        if not self._capture:
            return None
        if plan.captured is None and plan.uncaptured is None:
            plan.uncaptured = refusal(plan, arrays)
            if plan.uncaptured is None:
                try:
                    plan.captured = Captured(plan, arrays)
                except NotImplementedError as error:  # CuPy: cuBLAS cannot be captured
                    plan.uncaptured = str(error)
        return plan.captured
