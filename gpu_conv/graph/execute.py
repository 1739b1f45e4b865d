"""Running a graph: the first call with new input shapes computes and records, later calls replay the record."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from .device import location
from .ir import Array, Graph
from .plan import Plan
from .planner import Memos, Planner

MAX_PLANS = 8  # sets of input shapes remembered per graph


class Executor:
    """A graph with the plans made for it.

    Args:
        device: where convolutions are computed; None follows the arrays.
    """

    def __init__(self, graph: Graph, device: str | None = None) -> None:
        self._graph = graph
        self._device = device
        self._inputs = [*(p.name for p in graph.inputs), *graph.captures]
        self._memos: Memos = {}
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, arrays: list[Array], observe: Any = None) -> list[Array]:
        """Outputs for the inputs (and captures), in order. One call at a time: a plan owns its buffers.

        Args:
            observe: see ``Plan.run``.
        """
        key = tuple((type(a), a.shape, a.dtype, location(a)) for a in arrays)
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None:
                self._plans.move_to_end(key)
                return plan.run(arrays, observe)
            inputs = dict(zip(self._inputs, arrays, strict=True))
            plan, results = Planner(inputs, self._memos, self._device, Executor).record(self._graph)
            self._plans[key] = plan
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
            return plan.run(arrays, observe) if observe else results
