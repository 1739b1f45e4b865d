"""Element by element: arithmetic, comparisons, casts and activations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...epilogue import Activation
from ..ir import Array, Host, Node
from ..tensors import dtype_of
from .registry import Call, host, op

_UFUNCS = {
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
    "Equal": "equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Not": "logical_not",
    "Abs": "absolute",
    "Neg": "negative",
    "Sqrt": "sqrt",
    "Exp": "exp",
    "Log": "log",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "rint",
    "Sign": "sign",
    "Sin": "sin",
    "Cos": "cos",
    "IsNaN": "isnan",
}


@op(*_UFUNCS, layout="aligned", out=True)
def ufunc(call: Call, *operands: Array) -> Array:
    """The operators that are one NumPy ufunc each."""
    return getattr(call.xp, _UFUNCS[call.node.op])(*operands, out=call.out)


@op("Div", layout="aligned", out=True)
def div(call: Call, a: Array, b: Array) -> Array:
    """Division; of integers, towards zero as in C."""
    if a.dtype.kind == "f":
        return call.xp.divide(a, b, out=call.out)
    quotient = call.xp.floor_divide(call.xp.absolute(a), call.xp.absolute(b), out=call.out)
    return call.xp.multiply(quotient, call.xp.sign(a) * call.xp.sign(b), out=call.out)


@op("Mod", layout="aligned")
def mod(call: Call, a: Array, b: Array) -> Array:
    """Remainder with the sign of the divisor, or of the dividend with ``fmod``."""
    return (call.xp.fmod if call.attrs["fmod"] else call.xp.mod)(a, b)


@op("Pow", layout="aligned")
def power(call: Call, a: Array, b: Array) -> Array:
    """``a ** b`` in the type of ``a``."""
    return call.xp.power(a, b).astype(a.dtype, copy=False)


@op("Reciprocal", layout="aligned")
def reciprocal(call: Call, x: Array) -> Array:
    """``1 / x``."""
    return x.dtype.type(1) / x


@op("Sum", "Mean", "Max", "Min", layout="aligned", views=True)
def variadic(call: Call, *operands: Array) -> Array:
    """Any number of operands, broadcast."""
    name = {"Max": "maximum", "Min": "minimum"}.get(call.node.op, "add")
    total = functools.reduce(getattr(call.xp, name), operands)
    return total / total.dtype.type(len(operands)) if call.node.op == "Mean" else total


@op("Where", layout="aligned")
def where(call: Call, condition: Array, a: Array, b: Array) -> Array:
    """Choose element by element."""
    return call.xp.where(condition, a, b)


@op("Cast", layout="aligned", views=True)
def cast(call: Call, x: Array) -> Array:
    """Another element type."""
    return x.astype(dtype_of(call.attrs["to"], str(call.node)), copy=False)


@op("CastLike", views=True)
def cast_like(call: Call, x: Array, like: Array) -> Array:
    """The element type of another value."""
    return x.astype(like.dtype, copy=False)


@op("Erf", layout="aligned")
def erf(call: Call, x: Array) -> Array:
    """Through ``gelu(v) = v (1 + erf(v / sqrt 2)) / 2``, the one place where erf is computed."""
    v = x * x.dtype.type(math.sqrt(2.0))
    safe = call.xp.where(v == 0, v.dtype.type(1), v)
    return call.xp.where(v == 0, v, 2 * Activation("gelu")(safe) / safe - 1).astype(x.dtype, copy=False)


@op("PRelu", layout="aligned")
def prelu(call: Call, x: Array, slope: Array) -> Array:
    """``slope * x`` below zero."""
    return call.xp.where(x < 0, x * slope, x)


@op("Mish", layout="aligned")
def mish(call: Call, x: Array) -> Array:
    """``x * tanh(softplus(x))``."""
    return x * call.xp.tanh(Activation("softplus")(x))


Spec = str | tuple[Any, ...]

# Operator -> the package's name of the activation and the attributes that are its parameters.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": ("relu",),
    "Sigmoid": ("sigmoid",),
    "Tanh": ("tanh",),
    "HardSigmoid": ("hard_sigmoid", "alpha", "beta"),
    "HardSwish": ("hard_swish",),
    "Elu": ("elu", "alpha"),
    "LeakyRelu": ("leaky_relu", "alpha"),
    "Softplus": ("softplus",),
    "Silu": ("silu",),
    "Gelu": ("gelu",),
}


def activation_of(node: Node, constant: Callable[[str], Host | None]) -> Spec | None:
    """The activation that a node is, in the words of ``Conv(activation=...)``, or None.

    Args:
        constant: value name -> its value if it is known when the model is loaded.
    """
    if node.op == "Clip":
        bounds = _clip_bounds(node, constant)
        named: dict[tuple[float, float], Spec] = {(0.0, 6.0): "relu6", (0.0, math.inf): "relu"}
        return named.get(bounds, ("clip", *bounds)) if bounds and bounds[0] <= bounds[1] else None
    if node.op not in _ACTIVATIONS or node.attrs.get("approximate", "none") != "none":
        return None
    name, *parameters = _ACTIVATIONS[node.op]
    return (name, *(float(node.attrs[p]) for p in parameters)) if parameters else name


def _clip_bounds(node: Node, constant: Callable[[str], Host | None]) -> tuple[float, float] | None:
    if node.version < 11:
        return float(node.attrs["min"]), float(node.attrs["max"])
    bounds = [-math.inf, math.inf]
    for i, name in enumerate(node.inputs[1:3]):
        if name:
            value = constant(name)
            if value is None or value.size != 1:
                return None
            bounds[i] = float(value.reshape(())[()])
    return bounds[0], bounds[1]


@functools.lru_cache(256)
def _parsed(spec: Spec) -> Activation:
    activation = Activation.parse(spec)
    assert activation is not None
    return activation


def activate(spec: Spec, x: Array, out: Array | None = None) -> Array:
    """``activation(x)`` in the type of x."""
    return _parsed(spec)(x, out)


@op(*_ACTIVATIONS, layout="aligned", out=True)
def activation(call: Call, x: Array) -> Array:
    """The activations of the package's own epilogue."""
    spec = activation_of(call.node, lambda _: None)
    return _tanh_gelu(call, x) if spec is None else activate(spec, x, call.out)


def _tanh_gelu(call: Call, x: Array) -> Array:
    t = x.dtype.type
    result = x * t(0.5) * (call.xp.tanh(t(math.sqrt(2 / math.pi)) * (x + t(0.044715) * x * x * x)) + t(1))
    return result if call.out is None else _store(call.out, result)


def _store(out: Array, value: Array) -> Array:
    out[...] = value
    return out


@op("Clip", layout="aligned", host=(1, 2), out=True)
def clip(call: Call, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Bounds are attributes before opset 11, operands since; either may be absent."""
    if call.version < 11:
        bounds: tuple[float, float] = call.attrs["min"], call.attrs["max"]
    else:
        bounds = _scalar(low, -math.inf), _scalar(high, math.inf)
    if bounds[0] > bounds[1]:  # ONNX: every element becomes the upper bound
        bounds = bounds[1], bounds[1]
    return activate(("clip", *bounds), x, call.out)


def _scalar(bound: Array | None, default: float) -> float:
    return default if bound is None else float(host(bound).reshape(())[()])


@op("Swish", layout="aligned")
def swish(call: Call, x: Array) -> Array:
    """``x * sigmoid(alpha * x)``."""
    return x * activate("sigmoid", x * x.dtype.type(call.attrs["alpha"]))


@op("Softsign", layout="aligned")
def softsign(call: Call, x: Array) -> Array:
    """``x / (1 + |x|)``."""
    return x / (x.dtype.type(1) + call.xp.absolute(x))


@op("Identity", "Dropout", layout="aligned", views=True)
def identity(call: Call, x: Array, *_: Array) -> Any:
    """Dropout does nothing at inference; its mask keeps every element."""
    if len([o for o in call.node.outputs if o]) < 2:
        return x
    return x, call.xp.ones(x.shape, x.dtype if call.version < 10 else np.bool_)
