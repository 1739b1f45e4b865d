"""Which kernel runs which problem: a table read from top to bottom; the first row that can, and is not slower, wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from .families import Row, depthwise, direct, pointwise, tile, toeplitz
from .launch import CTYPES, Launch, Target
from .problem import ConvProblem

TABLE: tuple[Row, ...] = (*pointwise.ROWS, *toeplitz.ROWS, *depthwise.ROWS, *tile.ROWS, *direct.ROWS)


@dataclass(frozen=True)
class Slower:
    """Where a row of the table could run a problem, but a row below it was measured to be faster."""

    kernel: str
    where: Callable[[ConvProblem], bool]
    reason: str


# Microseconds on an H100 80GB HBM3 with cold L2: this kernel against the next one in the table.
SLOWER: tuple[Slower, ...] = (
    Slower(
        "depthwise_toeplitz",
        lambda p: p.rank == 1 and p.filter[-1] < 9,
        "a short 1-D filter: 171 us against 28 (float16, 5120 channels, length 2048, filter 4)",
    ),
    Slower(
        "depthwise_nhwc_tile",
        lambda p: p.filter[-1] < 5 and not 14 <= p.in_spatial[-1] <= 28,
        "a small filter outside maps of 14 to 28: 32.0 us against 28.7 (float16, batch 32, 56x56x144, 3x3), "
        "43.8 against 33.1 (batch 256, 7x7x1152, 3x3)",
    ),
    Slower(
        "depthwise_nhwc_tile",
        lambda p: p.in_spatial[-1] < 14,
        "a small map: 68.8 us against 62.5 (float16, batch 256, 7x7x1152, 5x5)",
    ),
)


def slower(problem: ConvProblem, kernel: str) -> str | None:
    """Why a row is passed over although it could run the problem; None if it is not."""
    return next((s.reason for s in SLOWER if s.kernel == kernel and s.where(problem)), None)


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
        if reason is None and (kernel or not slower(problem, candidate.name)):
            return candidate
        reasons.append(f"{candidate.name}: {reason}")
    raise ValueError(f"no kernel takes this problem ({problem}); {'; '.join(reasons)}")


@lru_cache(maxsize=4096)
def plan(problem: ConvProblem, target: Target, kernel: str | None = None) -> Launch:
    """The launch for a problem on a target."""
    return select(problem, target, kernel).plan(problem, target)
