"""Where the time of a model goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..arrays import overlap
from .ops import OPS
from .plan import Step


@dataclass(frozen=True)
class Record:
    """One step of a model.

    Attributes:
        node: name in the file, or the value for a step that the runner added.
        op: operator; convolutions name what was fused into them.
        kernel: what computed it.
        shape: of the first result as it lies in memory (channels last within the graph).
        bytes: operands read and results written, each once; views move nothing.
        seconds: median over the runs.
    """

    node: str
    op: str
    kernel: str
    shape: tuple[int, ...]
    bytes: int
    seconds: float


class Profile(Sequence[Record]):
    """The records of a run, in order; ``str`` gives a table."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def __getitem__(self, index: Any) -> Any:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def seconds(self) -> float:
        """Total time."""
        return sum(r.seconds for r in self.records)

    def __str__(self) -> str:
        return "\n".join(_table(self))


def _table(profile: Profile) -> Iterator[str]:
    total = profile.seconds or 1.0
    rows = [("ms", "%", "GB/s", "MB", "kernel", "op", "result", "node")]
    for r in profile.records:
        rate = r.bytes / r.seconds / 1e9 if r.seconds else 0.0
        shape = "x".join(map(str, r.shape)) or "scalar"
        numbers = (f"{r.seconds * 1e3:.3f}", f"{100 * r.seconds / total:.1f}", f"{rate:.1f}", f"{r.bytes / 1e6:.2f}")
        rows.append((*numbers, r.kernel, r.op, shape, r.node))
    moved = sum(r.bytes for r in profile.records)
    rows.append((f"{profile.seconds * 1e3:.3f}", "100.0", "", f"{moved / 1e6:.2f}", "", "total", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (c.rjust(w) if i < 4 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        yield "  ".join(cells).rstrip()


class Recorder:
    """Collects the steps of several runs; called by ``Plan.run``."""

    def __init__(self) -> None:
        self._steps: list[tuple[Step, int, tuple[int, ...], str]] = []
        self._seconds: list[list[float]] = []
        self._position = 0

    def start(self) -> None:
        """The next run begins."""
        self._position = 0

    def __call__(self, step: Step, seconds: float, values: list[Any]) -> None:
        if self._position == len(self._steps):
            results = [values[i] for i in step.outputs]
            operands = [values[i] for i in step.inputs]
            present = [a for a in operands if a is not None]
            moved = 0 if _is_view(results[0], present) else sum(a.nbytes for a in (*present, *results))
            self._steps.append((step, moved, results[0].shape, _kernel(step, operands)))
            self._seconds.append([])
        self._seconds[self._position].append(seconds)
        self._position += 1

    def profile(self) -> Profile:
        """The records."""
        return Profile(
            [
                Record(_name(step), _op(step), kernel, shape, moved, median(seconds))
                for (step, moved, shape, kernel), seconds in zip(self._steps, self._seconds, strict=True)
            ]
        )


def _is_view(result: Any, operands: list[Any]) -> bool:
    """Whether a result lies in an operand's memory. (All results have one base: the arena of the plan.)"""
    return any(type(a) is type(result) and overlap(result, a) for a in operands)


def _name(step: Step) -> str:
    return step.call.node.name or step.call.node.outputs[0]


def _op(step: Step) -> str:
    node = step.call.node
    spec = node.attrs.get("activation")
    parts = [node.op]
    if node.op == "Conv" and len(node.inputs) > 3:
        parts.append("add")
    if spec:
        parts.append(spec if isinstance(spec, str) else str(spec[0]))
    return "+".join(parts)


def _kernel(step: Step, operands: list[Any]) -> str:
    row = OPS.get(step.call.node.op)
    return row.kernel(step.call, *operands) if row and row.kernel else step.call.kernel or step.call.xp.__name__
