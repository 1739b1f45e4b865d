"""The NumPy fallback, made fast: every convolution of the package on the CPU.

``prepare`` chooses a strategy, packs the weights for it and returns a :class:`Prepared`; ``run`` computes. Preparing
costs no more than a run; a layer keeps what it prepared and may run it from several threads at once: working memory
belongs to the thread (``scratch.py``), not to the layer.

Padding without a copy
    A padded convolution copies its input into a zero-padded workspace. Whoever produces the input can save that: write
    it into the interior of an array with a border of zeros, and convolve the whole array with ``padding=0``. Arrays are
    read where they lie as long as they need no padding or conversion.

Several layers at once
    ``chain.py`` computes MobileNet's blocks of three convolutions by blocks of rows: what lies between them never
    leaves the cache. ``gpu_conv.InvertedResidual`` and the ONNX runner use it.

Memory
    Beyond operands and packed weights a run uses ``prepared.workspace_bytes``: one padded image, and blocks of at most
    1 MiB (float32) of im2col columns and a few hundred KiB of sums, or a single pixel's where that is more. Depthwise
    layers of 4 channels and more pad blocks of rows instead of the image; transposed ones take the products of one row
    where these exceed 1 MiB (at most 4 MiB), and the rows of sums that a block reaches.

Weights that are infinite or NaN take the plain sum over taps where the input is padded, so that padding contributes
nothing, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..problem import ConvProblem
from .col2im import Col2im
from .depthwise import Depthwise
from .exact import carried
from .flat import FlatShift
from .general import General
from .im2col import Im2col
from .phases import Phases
from .pointwise import Pointwise
from .prepared import Prepared
from .scratch import Array
from .views import channels_are_last

__all__ = ["STRATEGIES", "Choice", "Prepared", "explain", "prepare"]

FEW = 4  # filters per input channel up to which the taps are summed one by one; matrix products win beyond
SINGLE = 4  # groups from which channels are moved to the end and back: 8 at 224x224 take 0.9 of the time, 1 up to 5


@dataclass(frozen=True)
class Choice:
    """One row of the table of strategies: the first that neither refuses a problem nor is unsuited computes it."""

    strategy: type[Prepared]
    why: str
    suits: Callable[[ConvProblem], bool] = lambda problem: True


STRATEGIES = (
    Choice(
        Col2im,
        "filters that overlap in the result of a dilated input: all taps are one matrix product, added up in place",
        Col2im.suits,
    ),
    Choice(Phases, "the holes of a dilated input need not be multiplied"),
    Choice(
        FlatShift,
        f"at most {FEW} filters per channel, fewer than {SINGLE} channels, first: every tap is one shift of the image",
        lambda p: p.out_per_group <= FEW and p.groups < SINGLE and not channels_are_last(p.y),
    ),
    Choice(
        Depthwise,
        f"at most {FEW} filters per channel: fused multiply-add along columns and channels",
        lambda p: p.out_per_group <= FEW,
    ),
    Choice(Pointwise, "a 1x1 filter is a matrix product over the pixels"),
    Choice(Im2col, "blocks of the output are matrix products of copied columns"),
    Choice(General, "integers, empty sums, infinite weights: the plain sum over taps"),
)


def explain(problem: ConvProblem) -> list[tuple[str, str | None]]:
    """Every strategy with the reason why it does not compute the problem, None for the one that does (first None)."""
    rows = []
    for choice in STRATEGIES:
        refusal = choice.strategy.refuses(problem)
        rows.append((choice.strategy.name, refusal or (None if choice.suits(problem) else f"suited to {choice.why}")))
    return rows


def prepare(problem: ConvProblem, w: Array, bias: Array | None = None, w_zero_point: Array | None = None) -> Prepared:
    """Choose a strategy and pack the weights.

    Args:
        problem: what to compute.
        w: ``(g, o, c, *filter)``, any strides.
        bias: ``(g * o,)``, or None.
        w_zero_point: int32 ``(g * o,)`` to subtract from ``w``, or None.

    Returns:
        What runs it on any arrays with the problem's shapes and dtypes; strides may differ from the problem's, which
        only decide the strategy.
    """
    weights, carrier = carried(problem, w, w_zero_point)
    padded = any(lo > 0 or hi > 0 for lo, hi in problem.padding) or any(d > 1 for d in problem.input_dilations)
    if padded and carrier.kind != "i" and not np.isfinite(weights).all():
        return General(problem, weights, bias, carrier)
    return _build(problem, weights, bias, carrier)


def _build(problem: ConvProblem, weights: Array, bias: Array | None, carrier: np.dtype[Any]) -> Prepared:
    for choice in STRATEGIES:
        strategy = choice.strategy
        if carrier.kind == "i" and strategy not in (Phases, General):
            continue
        if strategy.refuses(problem) is None and choice.suits(problem):
            break
    if strategy is Phases:
        return Phases(problem, weights, bias, carrier, _build)
    return strategy(problem, weights, bias, carrier)
