"""All phases of a dilated input in one launch: the host half of ``kernels/phases.cuh``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ..launch import pack, struct
from ..phases import Phase, split
from ..problem import ConvProblem, Tensor

_MOST = 16  # that the struct has room for
PHASES = struct(
    "Phases",
    [
        *((name, "i8", _MOST) for name in ("w", "y", "residual")),
        *((name, "i4", 3 * _MOST) for name in ("padding", "filter")),
        ("count", "i4"),
    ],
)


class Start(NamedTuple):
    """In what one phase differs from the others: where its tensors begin, in elements, low padding, and taps."""

    w: int
    y: int
    residual: int
    padding: tuple[int, ...]
    filter: tuple[int, ...]


@dataclass(frozen=True)
class Launched:
    """What one launch computes: a convolution, or all phases of one.

    Attributes:
        problem: the convolution; of phases the one with the most taps, its tensors aligned as those of all are.
        starts: of every phase; empty for one convolution.
    """

    problem: ConvProblem
    starts: tuple[Start, ...] = ()

    @property
    def count(self) -> int:
        """Convolutions."""
        return max(1, len(self.starts))

    @property
    def template(self) -> tuple[int, ...]:
        """The last argument of the kernels' ``Access``, which one convolution leaves out."""
        return (1,) if self.starts else ()

    @property
    def same_taps(self) -> bool:
        return len({start.filter for start in self.starts}) <= 1

    @property
    def windows(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Low padding and taps of each."""
        p = self.problem
        return [(s.padding, s.filter) for s in self.starts] or [(tuple(lo for lo, _ in p.padding), p.filter)]

    @property
    def params(self) -> bytes:
        """Behind those of the problem."""
        if not self.starts:
            return b""
        starts, spare = self.starts, _MOST - len(self.starts)
        firsts = {name: [*(getattr(s, name) for s in starts), *[0] * spare] for name in ("w", "y", "residual")}
        padding = [n for s in starts for n in (*[0] * (3 - len(s.padding)), *s.padding)]
        taps = [n for s in starts for n in (*[1] * (3 - len(s.filter)), *s.filter)]
        unused = [0] * 3 * spare
        return pack(PHASES, **firsts, padding=padding + unused, filter=taps + unused, count=len(starts))


def refuses(problem: ConvProblem) -> str | None:
    """Why one launch cannot compute a problem, or None."""
    found = _launched(problem)
    return found if isinstance(found, str) else None


def launched(problem: ConvProblem) -> Launched:
    """What a launch for a problem that is not refused computes."""
    found = _launched(problem)
    assert isinstance(found, Launched), found
    return found


@lru_cache(maxsize=256)
def _launched(problem: ConvProblem) -> Launched | str:
    if all(d == 1 for d in problem.input_dilations):
        return Launched(problem)
    phases = split(problem)
    problems = [phase.problem for phase in phases]
    if problem.is_depthwise:
        return f"dilates no input of one channel per group, got {problem.input_dilations}"
    if len(phases) > _MOST or problem.rank > 3:
        return f"one launch takes {_MOST} phases of a dilated input and 3 axes, got {problem.input_dilations}"
    if not all(p.taps for p in problems):
        return f"some outputs meet no tap of the filter {problem.filter} between the dilated input"
    if len({p.out_spatial for p in problems}) > 1:
        return f"phases of a dilated input need outputs of one size, got {problem.out_spatial} in all"
    most = max(problems, key=lambda p: p.taps)
    aligned = {n: min(getattr(p, n).align for p in problems) for n in ("w", "y", "residual") if getattr(most, n)}
    tensors = {name: replace(getattr(most, name), align=align) for name, align in aligned.items()}
    return Launched(replace(most, **tensors), tuple(_start(problem, phase) for phase in phases))


def _start(whole: ConvProblem, phase: Phase) -> Start:
    def first(tensor: Tensor | None, slices: tuple[slice, ...]) -> int:
        return sum(s.start * step for s, step in zip(slices, tensor.strides[3:], strict=True)) if tensor else 0

    w, y, residual = first(whole.w, phase.taps), first(whole.y, phase.outputs), first(whole.residual, phase.outputs)
    return Start(w, y, residual, tuple(lo for lo, _ in phase.problem.padding), phase.problem.filter)
