"""A plan as one CUDA graph: a call launches it, and costs the host what one kernel costs.

The first steps that read nothing but the inputs (the move to channels last, the rounding) stay outside: they read the
caller's arrays and write the buffers that the graph reads. Inputs that a captured step reads are copied first. What the
captured steps allocate comes from a memory pool that the graph keeps for itself.
"""

from __future__ import annotations

from typing import Any

from .device import namespace
from .ir import Array
from .plan import Plan, Step


def refusal(plan: Plan, arrays: list[Array]) -> str | None:
    """Why a plan cannot be captured; None if nothing is known to be in the way."""
    modules = {namespace(array) for array in arrays}
    xp = modules.pop() if len(modules) == 1 else None
    if not hasattr(xp, "cuda"):
        return "not all inputs are on the GPU"
    for step in plan.steps:
        if not step.capturable or step.call.xp is not xp:
            return f"{step.call.node} needs the host"
    return None


class Captured:
    """The graph of one plan, with its memory.

    Raises:
        NotImplementedError: a step uses cuBLAS, which CuPy does not capture.
    """

    def __init__(self, plan: Plan, arrays: list[Array]) -> None:
        self._plan = plan
        self._first, self._body = _split(plan)
        read = {slot for step in self._body for slot in step.inputs} | set(plan.outputs)
        xp = namespace(arrays[0])
        self._current = xp.cuda.get_current_stream
        self._inputs = [
            (i, xp.empty(array.shape, array.dtype))
            for i, (slot, array) in enumerate(zip(plan.inputs, arrays, strict=True))
            if slot in read
        ]
        self._kept = [dict(step.call.memo) for step in self._body]  # tables and filters whose addresses are captured
        self._pool = xp.cuda.MemoryPool()
        start = self._prologue(arrays)
        stream = xp.cuda.Stream(non_blocking=True)
        self._current().synchronize()
        with stream, xp.cuda.using_allocator(self._pool.malloc):
            plan.execute(self._body, start.copy())  # whatever is compiled, packed or allocated once is so now
            stream.synchronize()
            stream.begin_capture()
            try:
                self._values = plan.execute(self._body, start)
            finally:
                self._graph = stream.end_capture()

    def __call__(self, arrays: list[Array], overwrite: bool) -> list[Array]:
        """Outputs for new inputs; the graph's own arrays, overwritten by the next call, if asked."""
        self._prologue(arrays)
        self._graph.launch(self._current())
        return [self._values[s] if overwrite else self._values[s].copy() for s in self._plan.outputs]

    def _prologue(self, arrays: list[Array]) -> list[Any]:
        """Bring the inputs to where the graph reads them; the values that it starts from."""
        values = self._plan.execute(self._first, self._plan.start(arrays))
        for slot in self._plan.inputs:
            values[slot] = None
        for i, fixed in self._inputs:
            fixed[...] = arrays[i]
            values[self._plan.inputs[i]] = fixed
        return values


def _split(plan: Plan) -> tuple[list[Step], list[Step]]:
    """The leading steps from inputs to buffers, and the rest."""
    inputs, count = set(plan.inputs), 0
    for step in plan.steps:
        if step.call.out is None or not inputs.issuperset(step.inputs):
            break
        count += 1
    return plan.steps[:count], plan.steps[count:]
