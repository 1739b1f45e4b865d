"""Operands for a problem of which only the description is left: its strides and alignment, small integers in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import requantize
from .arrays import Array, address
from .problem import ITEMSIZE, ConvProblem, Tensor

_PATTERN = 1 << 18  # random elements, repeated over larger arrays
_LINE = 16  # bytes: the alignment that kernels look at
_SPOILT = 0xFF  # as bytes of y before a run: NaN in every floating-point type


@dataclass(frozen=True)
class Operands:
    """What a launch works on.

    Attributes:
        arrays: by the names of ``launch.POINTERS``.
        written: the bytes below ``y``, gaps included.
    """

    arrays: Mapping[str, Array | None]
    written: Array

    def spoil(self) -> None:
        """NaN into ``y``."""
        self.written.fill(_SPOILT)


def operand_sets(problem: ConvProblem, xp: Any, count: int) -> list[Operands]:
    """Operands of -2 to 2, whose sums are exact in any order; the sets have ``x`` and ``y`` of their own.

    Args:
        problem: what is computed.
        xp: NumPy or CuPy.
        count: how many sets.
    """
    rng = np.random.default_rng(0)
    channels = problem.out_channels
    shared: dict[str, Array | None] = {
        "w": _fill(problem.w, rng, xp)[0],
        "bias": _bias(problem, rng, xp),
        "residual": _fill(problem.residual, rng, xp)[0] if problem.residual else None,
        "x_zero_point": xp.ones(1, np.int32) if problem.x_zero_point else None,
        "w_zero_point": xp.ones(channels, np.int32) if problem.w_zero_point else None,
    }
    sets = []
    for _ in range(count):
        y, written = _fill(problem.y, rng, xp)
        sets.append(Operands({**shared, "x": _fill(problem.x, rng, xp)[0], "y": y}, written))
        sets[-1].spoil()
    return sets


def _bias(problem: ConvProblem, rng: np.random.Generator, xp: Any) -> Array | None:
    if problem.requantizes:
        return requantize.pack((0.01, 0), None, problem.out_channels, problem.y.dtype, xp)
    if problem.bias is None:
        return None
    return xp.asarray(_small(problem.out_channels, problem.bias, rng))


def _small(count: int, dtype: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    low = 0 if dtype.startswith("u") else -2
    return rng.integers(low, 3, count).astype(np.dtype(dtype))


def _fill(tensor: Tensor, rng: np.random.Generator, xp: Any) -> tuple[Array, Array]:
    """An array like the tensor, and all bytes of its memory."""
    size = ITEMSIZE[tensor.dtype]
    spans = [((n - 1) * s) for n, s in zip(tensor.shape, tensor.strides, strict=True)]
    before, after = -sum(s for s in spans if s < 0), sum(s for s in spans if s > 0)
    elements = before + after + 1 if tensor.size else 0
    pattern = _small(min(elements, _PATTERN), tensor.dtype, rng).view(np.uint8)
    memory = xp.empty(elements * size + 2 * _LINE, np.uint8)
    skip = (tensor.align - address(memory) - before * size) % _LINE
    used = memory[skip : skip + elements * size]
    if elements:
        used[...] = xp.resize(xp.asarray(pattern), elements * size)
    first = used.view(np.dtype(tensor.dtype))[before:]
    strides = tuple(s * size for s in tensor.strides)
    return xp.lib.stride_tricks.as_strided(first, tensor.shape, strides), used
