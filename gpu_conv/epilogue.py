"""What happens to a sum before it is stored: ``activation(conv + bias + residual)``, then one rounding.

The names, their codes and their formulas stand here once. ``kernels/epilogue.cuh`` spells the same enumeration for the
GPU; ``tests/test_epilogue.py`` compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# name -> names and defaults of its parameters. The position in this table is the code in kernels/epilogue.cuh,
# where 0 is "none". Defaults are those of WebNN and ONNX.
ACTIVATIONS: dict[str, dict[str, float | None]] = {
    "relu": {},
    "relu6": {},
    "sigmoid": {},
    "tanh": {},
    "silu": {},
    "hard_sigmoid": {"alpha": 0.2, "beta": 0.5},
    "hard_swish": {},
    "gelu": {},
    "elu": {"alpha": 1.0},
    "softplus": {},
    "clip": {"lo": None, "hi": None},
    "leaky_relu": {"alpha": 0.01},
    "softsign": {},
    "linear": {"alpha": 1.0, "beta": 0.0},
    "celu": {"alpha": 1.0},
    "selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "scaled_tanh": {"alpha": None, "beta": None},
    "parametric_softplus": {"alpha": None, "beta": None},
    "thresholded_relu": {"alpha": 1.0},
    "shrink": {"bias": 0.0, "threshold": 0.5},
}
CODES = {name: code for code, name in enumerate(ACTIVATIONS, 1)}
INTEGER_ACTIVATIONS = ("relu", "relu6", "clip")  # the others are not closed over integers


@dataclass(frozen=True)
class Activation:
    """One activation with its (at most two) parameters; unused parameters are 0."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    @classmethod
    def parse(cls, value: object) -> Activation | None:
        """``None``, a name, or ``(name, *parameters)``, for example ``("clip", 0, 6)``.

        Raises:
            ValueError: unknown name, wrong number of parameters, NaN, or ``lo > hi``.
            TypeError: not a string or tuple, or parameters that are not numbers.
        """
        if value is None or isinstance(value, cls):
            return value
        name, *given = (value,) if isinstance(value, str) else value if isinstance(value, (tuple, list)) else (None,)
        if not isinstance(name, str):
            raise TypeError(f"activation must be None, a name or (name, *parameters), got {value!r}")
        if name not in ACTIVATIONS:
            raise ValueError(f"activation {name!r} is unknown; known are {', '.join(ACTIVATIONS)}")
        defaults = ACTIVATIONS[name]
        if len(given) > len(defaults):
            raise ValueError(f"activation {name!r} takes {len(defaults)} parameters {tuple(defaults)}, got {given}")
        parameters = [*given, *list(defaults.values())[len(given) :]]
        if any(p is None for p in parameters):
            raise ValueError(f"activation {name!r} needs the parameters {tuple(defaults)}, got {given}")
        if any(isinstance(p, (bool, str)) or not isinstance(p, (int, float, np.number)) for p in parameters):
            raise TypeError(f"parameters of activation {name!r} must be numbers, got {given}")
        numbers = [float(p) for p in parameters if p is not None]
        if any(math.isnan(p) for p in numbers):
            raise ValueError(f"parameters of activation {name!r} must not be NaN, got {given}")
        if name == "clip" and numbers[0] > numbers[1]:
            raise ValueError(f"activation ('clip', lo, hi) needs lo <= hi, got lo={numbers[0]} and hi={numbers[1]}")
        return cls(name, *numbers)

    @property
    def code(self) -> int:
        return CODES[self.name]

    def limits(self, dtype: np.dtype[Any]) -> tuple[Any, Any] | None:
        """The bounds of an activation that is a clip; scalars of ``dtype``: 6 times faster than maximum + minimum."""
        if self.name != "clip" and self.name not in _BOUNDS:
            return None
        return _bounds(dtype, *_BOUNDS.get(self.name, (self.alpha, self.beta)))

    def __call__(self, v: Array, out: Array | None = None) -> Array:
        """Apply to an array of the accumulation dtype; NaN stays NaN. ``out`` may be ``v`` itself.

        Integer arrays take the activations of ``INTEGER_ACTIVATIONS`` only.
        """
        out = np.empty_like(v) if out is None else out
        limits = self.limits(v.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            if limits:
                np.clip(v, *limits, out=out)
            else:
                out[...] = _FORMULAS[self.name](v, v.dtype.type(self.alpha), v.dtype.type(self.beta))
        return out


_BOUNDS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


def _bounds(dtype: np.dtype[Any], lo: float, hi: float) -> tuple[Any, Any]:
    """The bounds of a clip as scalars of ``dtype``; infinite bounds are an integer's own limits."""
    if dtype.kind not in "iu":
        return dtype.type(lo), dtype.type(hi)
    info = np.iinfo(dtype)
    return dtype.type(math.ceil(max(lo, info.min))), dtype.type(math.floor(min(hi, info.max)))


def _clip(v: Array, lo: float, hi: float) -> Array:
    clipped: Array = np.clip(v, v.dtype.type(lo), v.dtype.type(hi))
    return clipped


def _erf(v: Array) -> Array:
    """erf: ``math.erf`` per element for float64, a rational approximation within 2e-7 for float32."""
    if v.dtype == np.float64:
        return np.asarray(np.frompyfunc(math.erf, 1, 1)(v), v.dtype)
    t = _clip(v, -4, 4)
    s: Array = t * t
    ratio: Array = _horner(s, _ERF_P) / _horner(s, _ERF_Q)
    return t * ratio


def _softplus(v: Array) -> Array:
    total: Array = np.log1p(np.exp(-np.abs(v))) + np.maximum(v, v.dtype.type(0))
    return total


def _horner(s: Array, coefficients: tuple[float, ...]) -> Array:
    total: Array = s * s.dtype.type(coefficients[0]) + s.dtype.type(coefficients[1])
    for c in coefficients[2:]:
        total *= s
        total += s.dtype.type(c)
    return total


# Minimax rational approximation of erf on [-4, 4], highest power of x^2 first (Eigen and XLA use the same one).
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


_FORMULAS: dict[str, Callable[[Array, Any, Any], Array]] = {
    "sigmoid": lambda v, a, b: 1 / (1 + np.exp(-v)),
    "tanh": lambda v, a, b: np.tanh(v),
    "silu": lambda v, a, b: v / (1 + np.exp(-v)),
    "hard_sigmoid": lambda v, a, b: _clip(v * a + b, 0, 1),
    "hard_swish": lambda v, a, b: v * _clip(v + v.dtype.type(3), 0, 6) / 6,
    "gelu": lambda v, a, b: v * (_erf(v * v.dtype.type(math.sqrt(0.5))) + 1) / 2,
    "elu": lambda v, a, b: np.where(v < 0, a * np.expm1(v), v),
    "softplus": lambda v, a, b: _softplus(v),
    "leaky_relu": lambda v, a, b: np.where(v < 0, a * v, v),
    "softsign": lambda v, a, b: v / (1 + np.abs(v)),
    "linear": lambda v, a, b: a * v + b,
    "celu": lambda v, a, b: np.where(v < 0, a * np.expm1(v / a), v),
    "selu": lambda v, a, b: b * np.where(v < 0, a * np.expm1(v), v),
    "scaled_tanh": lambda v, a, b: a * np.tanh(b * v),
    "parametric_softplus": lambda v, a, b: a * _softplus(b * v),
    "thresholded_relu": lambda v, a, b: np.where(v <= a, v.dtype.type(0), v),
    "shrink": lambda v, a, b: np.where(v < -b, v + a, np.where(v <= b, v.dtype.type(0), v - a)),
}
