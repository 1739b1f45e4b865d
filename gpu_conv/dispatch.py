"""Which kernel runs which problem: a table read from top to bottom, the first row that does not refuse wins."""

from __future__ import annotations

from functools import lru_cache

from .families import Row, depthwise, direct, pointwise, tile, toeplitz
from .launch import CTYPES, Launch, Target
from .problem import ConvProblem

TABLE: tuple[Row, ...] = (*pointwise.ROWS, *toeplitz.ROWS, *depthwise.ROWS, *tile.ROWS, *direct.ROWS)


def row(name: str) -> Row:
    """The row of that name; ValueError with all names otherwise."""
    for candidate in TABLE:
        if candidate.name == name:
            return candidate
    raise ValueError(f"kernel={name!r} is unknown; known are {', '.join(r.name for r in TABLE)}")


def select(problem: ConvProblem, target: Target, kernel: str | None = None) -> Row:
    """The row that runs the problem, or the one forced by name.

    Raises:
        TypeError: no row takes the dtypes.
        ValueError: the forced row refuses, or every row does; the message gives the reason.
    """
    if problem.x.dtype not in CTYPES or problem.accumulate not in CTYPES or problem.y.dtype not in CTYPES:
        raise TypeError(
            f"the GPU kernels compute {', '.join(CTYPES)}, not {problem.x.dtype} -> {problem.y.dtype} summed in "
            f"{problem.accumulate}; NumPy arrays take every dtype"
        )
    candidates = TABLE if kernel is None else (row(kernel),)
    reasons = []
    for candidate in candidates:
        reason = candidate.refuses(problem, target)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.name}: {reason}")
    raise ValueError(f"no kernel takes this problem ({problem}); {'; '.join(reasons)}")


@lru_cache(maxsize=4096)
def plan(problem: ConvProblem, target: Target, kernel: str | None = None) -> Launch:
    """The launch for a problem on a target."""
    return select(problem, target, kernel).plan(problem, target)
