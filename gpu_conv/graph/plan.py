"""What a graph does for one set of input shapes: a flat list of steps over numbered values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from .device import finish
from .errors import EXPECTED, NodeError
from .ir import Array
from .ops.registry import Call

Replay = Callable[[list[Array], bool], list[Array]]  # inputs, whether results may be overwritten -> outputs


@dataclass
class Step:
    """One call: ``values[outputs] = run(call, *values[inputs])``.

    Attributes:
        inputs: slots of the operands; slot 0 holds None, the absent operand.
        outputs: slots of the results; one result is not wrapped in a tuple.
        drops: slots that nobody reads afterwards.
        capturable: whether it asks the host for nothing: every run launches the same kernels.
    """

    run: Callable[..., Any]
    call: Call
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    drops: tuple[int, ...] = ()
    capturable: bool = True


class Plan:
    """A recorded run.

    Attributes:
        template: initial values: constants and padded buffers in their slots, None elsewhere.
        inputs, outputs: slots of the graph's ports.
        nbytes, live: see ``buffers.Pool``.
        captured: ``capture.Captured``, the plan as a CUDA graph, or None.
        uncaptured: why it cannot be one, or None.
    """

    def __init__(self) -> None:
        self.template: list[Array | None] = [None]
        self.steps: list[Step] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        self.nbytes = self.live = 0
        self.captured: Replay | None = None
        self.uncaptured: str | None = None

    def slot(self, value: Array | None = None) -> int:
        """A new slot."""
        self.template.append(value)
        return len(self.template) - 1

    def run(self, arrays: list[Array], observe: Callable[[Step, float, list[Any]], None] | None = None) -> list[Array]:
        """Run all steps.

        Args:
            arrays: the graph's inputs, in order.
            observe: called after each step with its duration in seconds and all values.
        """
        values = self.execute(self.steps, self.start(arrays), observe)
        return [values[slot] for slot in self.outputs]

    def start(self, arrays: list[Array]) -> list[Any]:
        """All values before the first step."""
        values = self.template.copy()
        for slot, array in zip(self.inputs, arrays, strict=True):
            values[slot] = array
        return values

    def execute(
        self, steps: list[Step], values: list[Any], observe: Callable[[Step, float, list[Any]], None] | None = None
    ) -> list[Any]:
        """Run some steps on ``values``, in place; returns them."""
        for step in steps:
            start = perf_counter() if observe else 0.0
            try:
                result = step.run(step.call, *[values[i] for i in step.inputs])
            except EXPECTED as error:
                raise NodeError.wrap(step.call.node, error) from error
            if len(step.outputs) == 1:
                values[step.outputs[0]] = result
            else:
                for slot, part in zip(step.outputs, result, strict=True):
                    values[slot] = part
            if observe:
                finish(step.call.xp)
                observe(step, perf_counter() - start, values)
            for slot in step.drops:
                values[slot] = None
        return values
