"""Which kernel runs which problem: a table read from top to bottom. The first row that can, and is preferred, wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from typing import Any

from .choices import Choice, Choices
from .families import Row, depthwise, direct, implicit_gemm, pointwise, stem, tile, toeplitz, wgmma
from .launch import CTYPES, Launch, Target
from .phases import Phase, split
from .problem import ConvProblem

TABLE: tuple[Row, ...] = (
    *(*wgmma.ROWS, *pointwise.ROWS, *toeplitz.ROWS, *depthwise.ROWS, *stem.ROWS, *tile.ROWS),
    *(*implicit_gemm.ROWS, *direct.ROWS),
)


# Below these the kernels of mma.sync are faster: 64 channels of a step are mostly zeros, or multiprocessors idle.
_WGMMA_CHANNELS, _WGMMA_PIXELS = 64, 1024


def _few(p: ConvProblem) -> bool:
    pixels = p.batch * prod(p.out_spatial)
    return min(p.in_per_group, p.out_per_group) < _WGMMA_CHANNELS or pixels < _WGMMA_PIXELS


@dataclass(frozen=True)
class PassedOver:
    """Where a row could run a problem but leaves it to those below: they are faster, or it is not timed yet."""

    kernel: str
    where: Callable[[ConvProblem], bool]
    reason: str


# This kernel against the next one in the table: microseconds were measured on an H100 80GB HBM3 with cold L2;
# instructions were counted in the emulator, and are no times.
PASSED_OVER: tuple[PassedOver, ...] = (
    PassedOver(
        "wgmma",
        lambda p: _few(p) and prod(p.filter) <= 49,  # beyond, only implicit_gemm takes 16 bits: 283 us against 1390
        "few channels or pixels: 51 us against 35 (float16, 16 to 96 channels, 112x112, batch 32), 7.0 against 3.6 "
        "(960 to 160 channels, 7x7, batch 1), 104 against 35 (3x3, 32 to 32 channels per group, 7x7, batch 256)",
    ),
    PassedOver(
        "implicit_gemm",
        lambda p: p.groups > 1 and p.out_per_group <= (2 if p.y.channels_last else 4),
        "few outputs per group, of 8 at least that a tile has: 701 instructions per output against 429, emulated, not "
        "timed (float32 nchw, 28x28, 4 to 4 channels per group, 3x3)",
    ),
    PassedOver(
        "depthwise_toeplitz",
        lambda p: p.rank == 1 and p.filter[-1] < 9,
        "a short 1-D filter: 112 us against 17 (float16, 5120 channels, length 2048, filter 4)",
    ),
    PassedOver(
        "depthwise_toeplitz",
        lambda p: p.rank == 2 and p.filter[-1] <= 7 and p.in_spatial[-1] < (28 if p.filter[-1] <= 3 else 14),
        "short rows: 83 us against 27 (float16, batch 256, 7x7x960, 3x3), 73 against 48 (14x14x576, 3x3), 84 against "
        "62 (7x7x768, 7x7)",
    ),
    PassedOver(
        "depthwise_toeplitz",
        lambda p: p.rank == 2 and p.strides[-1] == 2 and p.filter[-1] <= 5,
        "stride 2 of a small filter: 43 us against 39 (float16, batch 32, 112x112x96, 3x3), 76 against 54 (batch 256, "
        "14x14x672, 5x5)",
    ),
    PassedOver(
        "depthwise_nhwc_mma",
        lambda p: p.filter[-1] < (5 if p.in_spatial[-1] < 14 else 7) or max(p.strides) > 1 or p.y.size < 1 << 22,
        "a small filter or little work: 93 us against 47 (float16, batch 256, 14x14x576, 3x3), 27 against 19 (batch "
        "32, 14x14x672, 5x5), 9.8 against 2.5 (batch 1, 14x14x384, 3x3)",
    ),
    PassedOver(
        "depthwise_nhwc_tile",
        lambda p: p.filter[-1] < 5,
        "a small filter: 44 us against 29 (float16, batch 256, 7x7x1152, 3x3), 50 against 48 (14x14x576), 70 against "
        "61 (28x28x192), 29 against 25 (batch 32, 56x56x144)",
    ),
    PassedOver(
        "depthwise_nhwc_tile",
        lambda p: p.in_spatial[-1] < 14,
        "a small map: 69 us against 67 (float16, batch 256, 7x7x1152, 5x5), 86 against 71 (7x7x768, 7x7)",
    ),
    PassedOver(
        "depthwise_nhwc_toeplitz",
        lambda p: max(p.filter) < 9,
        "a short filter: not timed, and up to 8 taps other kernels are",
    ),
)


def passed_over(problem: ConvProblem, kernel: str) -> str | None:
    """Why a row is passed over although it could run the problem; None if it is not."""
    return next((s.reason for s in PASSED_OVER if s.kernel == kernel and s.where(problem)), None)


def row(name: str) -> Row:
    """The row of that name; ValueError with all names otherwise."""
    for candidate in TABLE:
        if candidate.name == name:
            return candidate
    raise ValueError(f"kernel={name!r} is unknown; known are {', '.join(r.name for r in TABLE)}")


def select(problem: ConvProblem, target: Target, kernel: str | None = None, choices: Choices | None = None) -> Row:
    """The row that runs the problem: the one forced by name, else one that was measured, else the table's.

    Raises:
        TypeError: no row takes the dtypes.
        ValueError: the forced row refuses, or every row does; the message gives the reason.
    """
    if problem.x.dtype not in CTYPES or problem.accumulate not in CTYPES or problem.y.dtype not in CTYPES:
        raise TypeError(
            f"no GPU kernel computes {problem.x.dtype} -> {problem.y.dtype} summed in {problem.accumulate}: they take "
            f"{', '.join(name for name in CTYPES if name != 'int32')}; NumPy arrays take every dtype"
        )
    measured = choices.find(problem, target) if choices and kernel is None else None
    if measured and (chosen := _chosen(measured, problem, target)):
        return chosen
    candidates = TABLE if kernel is None else (row(kernel),)
    reasons = []
    for candidate in candidates:
        reason = candidate.refuses(problem, target)
        if reason is None and (kernel or not passed_over(problem, candidate.name)):
            return candidate
        reasons.append(f"{candidate.name}: {reason}")
    raise ValueError(f"no kernel takes this problem ({problem}); {'; '.join(reasons)}")


def _chosen(choice: Choice, problem: ConvProblem, target: Target) -> Row | None:
    """The row and tile that were measured; None where a table edited since knows them no more."""
    for candidate in TABLE:
        if candidate.name == choice.kernel and candidate.refuses(problem, target) is None:
            if choice.tile is None:
                return candidate
            for tile in candidate.tiles(problem, target):
                if tile._asdict() == choice.tile:
                    return replace(candidate, plan=partial(candidate.plan, tile=tile))
    return None


@lru_cache(maxsize=4096)
def plan(problem: ConvProblem, target: Target, kernel: str | None = None, choices: Choices | None = None) -> Launch:
    """The launch for a problem on a target."""
    return select(problem, target, kernel, choices).plan(problem, target)


@dataclass(frozen=True)
class Step:
    """One launch of a convolution: all of it, or one phase of a dilated input."""

    launch: Launch
    phase: Phase | None = None

    def operands(self, whole: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the launch works on: the operands of the convolution or views of them."""
        return whole if self.phase is None else self.phase.operands(whole)


# On an H100 direct computes 1.7 to 5.3 TFLOP/s (dense 3x3, 64 channels), and a launch costs about 4 us more: with four
# phases they meet between 30 and 90 MFLOP. Predicted from those figures, not measured.
PHASE_FLOPS = 32e6


def together(problem: ConvProblem, target: Target) -> Row | None:
    """The row that takes all phases of a dilated input at once, if it is the one that the largest phase would get."""
    found = select(problem, target)
    if found.name == "direct":
        return None
    largest = max((phase.problem for phase in split(problem)), key=lambda p: p.taps)
    return found if found.name == select(largest, target).name else None


def unphased(problem: ConvProblem, target: Target) -> str | None:
    """Why one launch is better than one per phase of a dilated input; None where phases are better."""
    if all(d == 1 for d in problem.input_dilations):
        return "the input is not dilated"
    if problem.is_depthwise:
        return "each phase would read the whole input, which is what a depthwise convolution waits for"
    if (row := together(problem, target)) is not None:
        return f"one launch of {row.name} computes all phases"
    if problem.flops < PHASE_FLOPS:
        return f"{problem.flops / 1e6:.3g} MFLOP are less than launches of their own are worth"
    if any(select(phase.problem, target).name == "direct" for phase in split(problem) if phase.problem.taps):
        return "a phase would run on direct, which skips the holes of the whole input as well"
    return None


@lru_cache(maxsize=4096)
def steps(
    problem: ConvProblem, target: Target, kernel: str | None = None, choices: Choices | None = None
) -> tuple[Step, ...]:
    """The launches for a problem, in any order: one, or one per phase of a dilated input where no kernel is forced."""
    if kernel is not None or unphased(problem, target):
        return (Step(plan(problem, target, kernel, choices)),)
    return tuple(
        Step(plan(phase.problem, target, None if phase.problem.taps else "direct", choices), phase)
        for phase in split(problem)
    )
