"""The corpus: convolutions that together reach every path of every kernel, run on every device.

Sizes are small and awkward: residues of every tile edge, tails of every vector width, odd channels. ``Case.call`` makes
the arrays; outputs start as NaN (or a sentinel) between guard bands, which ``Filled.check`` looks at afterwards.
"""

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16)
import numpy as np

from gpu_conv import arguments
from gpu_conv.testing.tolerance import assert_close

GUARD = 64  # elements on each side of an output
SENTINEL = 77  # what an integer output holds before


@dataclass(frozen=True)
class Case:
    """One convolution: shapes in channels-first meaning, layout, dtype, options of ``gpu_conv.conv``."""

    name: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    dtype: str = "float32"
    last: bool = False  # channels-last data (and filter with the channels last)
    bias: bool = True
    residual: bool = False
    transposed: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}-{self.dtype}-{'last' if self.last else 'first'}"


@dataclass
class Filled:
    """A prepared call whose output lies between guard bands."""

    call: arguments.Call
    buffer: Any
    host: dict[str, Any]

    def check(self, to_host=lambda a: a):
        """The result against float64, and nothing written outside of it."""
        whole = to_host(self.buffer)
        guards = np.concatenate([whole[:GUARD], whole[-GUARD:]])
        untouched = np.isnan(guards.astype(np.float64)) if self.is_float else guards == SENTINEL
        assert untouched.all(), "written outside the output"
        result = self.call.y_view(whole[GUARD:-GUARD].reshape(self.call.result.shape))
        assert_close(result, self.call.problem, self.host)

    @property
    def is_float(self):
        return self.buffer.dtype.kind not in "iu"


def last(array):
    """Channels-first to channels-last, contiguous."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def numbers(rng, shape, dtype, exact):
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return rng.integers(info.min, info.max + 1, shape).astype(kind)
    return (rng.integers(-2, 3, shape) if exact else rng.standard_normal(shape)).astype(kind)


def fill(case: Case, *, exact: bool, seed: int = 0, asarray=lambda a: a) -> Filled:
    """Arrays for a case: small integers (``exact``: every sum is exact) or normal numbers.

    ``asarray`` moves a NumPy array to the library under test.
    """
    rng = np.random.default_rng(seed)
    rank = len(case.x) - 2
    spatial = "dhw"[3 - rank :]
    x, w = numbers(rng, case.x, case.dtype, exact), numbers(rng, case.w, case.dtype, exact)
    integer = x.dtype.kind in "iu"
    groups = case.options.get("groups", 1)
    filters = case.w[1] * groups if case.transposed else case.w[0]
    bias_dtype = "int32" if integer else "float32" if case.dtype != "float64" else "float64"
    bias = rng.integers(-9, 10, filters).astype(bias_dtype) if exact or integer else rng.standard_normal(filters)
    options = dict(case.options, transposed=case.transposed)
    if case.last:
        x, w = last(x), last(w)
        letters = "io" if case.transposed else "oi"
        options |= {"input_layout": f"n{spatial}c", "filter_layout": f"{letters[0]}{spatial}{letters[1]}"}
    given = [asarray(x), asarray(w), asarray(bias.astype(bias_dtype)) if case.bias else None]
    shape = arguments.prepare(*given, **options).result
    residual = asarray(numbers(rng, shape.shape, shape.dtype, exact)) if case.residual else None
    buffer = np.full(shape.size + 2 * GUARD, SENTINEL if shape.dtype.kind in "iu" else np.nan, shape.dtype)
    buffer = asarray(buffer)
    out = buffer[GUARD:-GUARD].reshape(shape.shape)
    call = arguments.prepare(*given, residual=residual, out=out, **options)
    host = call.operands
    if type(out) is not np.ndarray:
        host = {k: None if v is None else v.get() for k, v in call.operands.items()}
    return Filled(call, buffer, host)


FLOATS = ("float32", "float16", "bfloat16")
BOTH = (False, True)


def _spread(name, x, w, dtypes=FLOATS, **options):
    """One geometry in several dtypes and both layouts."""
    extra = {k: options.pop(k) for k in ("bias", "residual", "transposed") if k in options}
    return [Case(name, x, w, d, order, options=options, **extra) for d, order in product(dtypes, BOTH)]


def _depthwise():
    yield from _spread("dw3x3", (2, 8, 9, 11), (8, 1, 3, 3), groups=8, padding=1, activation="relu6")
    yield from _spread("dw3x3 stride 2", (1, 16, 13, 10), (16, 1, 3, 3), groups=16, padding=1, strides=2)
    yield from _spread("dw3x3 stride 3", (1, 5, 13, 10), (5, 1, 3, 3), ("float32",), groups=5, strides=3)
    yield from _spread("dw3x3 mixed strides", (1, 4, 9, 9), (4, 1, 3, 3), ("float16",), groups=4, strides=(1, 2))
    yield from _spread("dw3x3 asymmetric", (1, 8, 7, 7), (8, 1, 3, 3), groups=8, strides=2, padding=((0, 1), (0, 1)))
    yield from _spread("dw multiplier", (1, 6, 8, 9), (18, 1, 3, 3), groups=6, padding=1, activation="silu")
    yield from _spread("dw dilated", (1, 4, 12, 13), (4, 1, 3, 3), groups=4, padding=2, dilations=2)
    yield from _spread(
        "dw residual", (2, 12, 7, 7), (12, 1, 3, 3), groups=12, padding=1, residual=True, activation="relu"
    )
    for k in (1, 2, 4, 5, 6, 7, 8):
        yield from _spread(f"dw{k}x{k}", (1, 8, 10, 12), (8, 1, k, k), ("float16",), groups=8, padding=k // 2)
    yield from _spread(
        "dw5x5 stride 2", (1, 8, 15, 14), (8, 1, 5, 5), ("float32", "float16"), groups=8, padding=2, strides=2
    )
    yield from _spread("dw7x7", (1, 32, 14, 14), (32, 1, 7, 7), ("float32", "bfloat16"), groups=32, padding=3)
    yield from _spread("dw1x5", (1, 8, 6, 12), (8, 1, 1, 5), ("float32",), groups=8, padding=((0, 0), (2, 2)))
    yield from _spread("dw13x13 on 7x7", (1, 8, 7, 7), (8, 1, 13, 13), ("float16",), groups=8, padding=6)
    yield from _spread("dw1d causal", (2, 8, 50), (8, 1, 4), groups=8, padding=((3, 0),), activation="silu")
    tall = {"groups": 16, "padding": ((5, 5), (4, 3)), "residual": True, "activation": "silu"}
    yield from _spread("dw11x9", (2, 16, 18, 20), (16, 1, 11, 9), ("float16",), **tall)
    yield from _spread("dw1d long", (1, 8, 300), (8, 1, 31), ("float16",), groups=8, padding=15)
    yield from _spread("dw3d", (1, 8, 4, 6, 7), (8, 1, 3, 3, 3), groups=8, padding=1)
    yield from _spread(
        "dw3d strides", (1, 6, 4, 9, 8), (6, 1, 3, 3, 3), ("float16",), groups=6, padding=1, strides=(1, 2, 2)
    )
    integers = {"groups": 8, "padding": 1, "x_zero_point": -5}
    yield Case("dw int8", (1, 8, 9, 7), (8, 1, 3, 3), "int8", True, options=integers)
    requantised = {"groups": 8, "padding": 2, "strides": 2, "requantize": (np.geomspace(1e-3, 0.1, 8), 100)}
    yield Case("dw requantised", (1, 8, 9, 6), (8, 1, 5, 5), "uint8", True, options=requantised | {"x_zero_point": 131})
    for width in range(1, 18):
        yield Case(
            f"dw width {width}",
            (1, 8, 5, width),
            (8, 1, 3, 3),
            "float16",
            bool(width % 2),
            options={"groups": 8, "padding": 1},
        )
    for c in (2, 3, 5, 7, 9, 15, 17, 33):
        yield Case(f"dw channels {c}", (1, c, 6, 6), (c, 1, 3, 3), "float16", True, options={"groups": c, "padding": 1})
    yield from _spread("dw negative padding", (1, 4, 9, 9), (4, 1, 3, 3), ("float32",), groups=4, padding=-1)


def _pointwise():
    yield from _spread("pw", (2, 16, 7, 9), (24, 16, 1, 1), activation="relu6")
    yield from _spread("pw residual", (1, 32, 5, 5), (16, 32, 1, 1), residual=True, bias=False)
    yield from _spread("pw stride 2", (1, 16, 9, 8), (8, 16, 1, 1), strides=2)
    yield from _spread("pw groups", (1, 24, 6, 6), (48, 8, 1, 1), groups=3, activation="gelu")
    yield from _spread("pw 1d", (2, 40, 33), (24, 40, 1))
    yield from _spread("pw 3d", (1, 8, 2, 5, 5), (16, 8, 1, 1, 1), ("float16",))
    yield from _spread("pw deep", (1, 320, 3, 3), (40, 320, 1, 1), ("float16", "float32"))
    yield from _spread("pw wide", (1, 24, 12, 12), (144, 24, 1, 1), ("float16", "float32"))
    for c, o in ((1, 1), (3, 5), (7, 9), (8, 8), (12, 20), (17, 31), (33, 65), (65, 33)):
        yield from _spread(f"pw {c} to {o}", (1, c, 5, 7), (o, c, 1, 1), ("float16", "float32"))
    for pixels in (1, 31, 63, 65, 127, 129):
        yield from _spread(f"pw {pixels} pixels", (1, 16, 1, pixels), (16, 16, 1, 1), ("float16",))
    yield from _spread("pw tf32", (1, 24, 6, 6), (40, 24, 1, 1), ("float32",), precision="tf32")
    yield from _spread("pw int8", (1, 32, 5, 6), (24, 32, 1, 1), ("int8", "uint8"))
    scales = np.geomspace(1e-4, 1e-2, 24)
    yield from _spread("pw requantised", (1, 32, 5, 6), (24, 32, 1, 1), ("uint8",), requantize=(scales, 7))


def _dense():
    yield from _spread("dense3x3", (1, 6, 8, 9), (10, 6, 3, 3), padding=1, activation="hard_swish")
    yield from _spread("stem", (1, 3, 15, 14), (8, 3, 3, 3), padding=1, strides=2, activation="relu")
    yield from _spread("grouped", (2, 12, 7, 8), (18, 4, 3, 3), groups=3, padding=1, residual=True)
    yield from _spread("dense1d", (1, 6, 20), (5, 6, 5), padding=2, dilations=2)
    yield from _spread("dense3d", (1, 3, 5, 5, 6), (4, 3, 2, 3, 3), padding=1)
    yield from _spread("input dilation", (1, 4, 5, 5), (6, 4, 3, 3), ("float32",), input_dilations=(2, 3), padding=2)
    yield from _spread("batch groups", (4, 3, 6, 6), (6, 3, 3, 3), ("float32",), batch_groups=2)
    yield from _spread("flipped", (1, 4, 6, 6), (4, 4, 3, 2), ("float32", "float16"), flip_filter=True)
    yield from _spread("float64", (1, 4, 6, 6), (6, 4, 3, 3), ("float64",), padding=1, activation="gelu")
    yield from _spread("wider output", (1, 4, 6, 6), (6, 4, 3, 3), ("float16",), padding=1, out_dtype=np.float32)
    yield from _spread(
        "int8", (1, 5, 6, 7), (6, 5, 3, 3), ("int8", "uint8"), padding=1, x_zero_point=3, w_zero_point=np.arange(6)
    )
    eighths = (1 / 512, np.uint8(130))  # many halves
    yield from _spread("requantised", (1, 8, 6, 7), (6, 4, 3, 3), ("int8",), groups=2, padding=1, requantize=eighths)
    yield from _spread("other layout", (1, 4, 5, 6), (6, 4, 3, 3), ("float32",), padding=1, output_layout="chwn")
    yield from _spread(
        "deconv k4 s2", (1, 4, 5, 6), (4, 6, 4, 4), ("float32", "float16"), transposed=True, strides=2, padding=1
    )
    up = {"transposed": True, "strides": 2}
    yield from _spread("deconv k2 s2", (1, 6, 4, 4), (6, 3, 2, 2), ("float32",), **up)
    yield from _spread("deconv k2 s2", (1, 16, 3, 5), (16, 24, 2, 2), ("float16",), residual=True, **up)
    uneven = up | {"padding": 1, "output_padding": 1}
    yield from _spread("deconv k3 s2", (1, 24, 5, 6), (24, 8, 3, 3), ("float32", "float16"), **uneven)
    yield from _spread(
        "deconv groups",
        (1, 6, 4, 5),
        (6, 2, 3, 3),
        ("float32",),
        transposed=True,
        strides=2,
        output_padding=1,
        groups=3,
    )


ACTIVATIONS = (
    "relu", "relu6", "sigmoid", "tanh", "silu", "hard_sigmoid", "hard_swish", "gelu", "elu", "softplus",
    ("clip", -0.5, 0.75), ("leaky_relu", 0.2),
)  # fmt: skip


def _epilogues():
    for activation in ACTIVATIONS:
        name = activation if isinstance(activation, str) else activation[0]
        yield Case(
            f"act {name} dw",
            (1, 4, 5, 5),
            (4, 1, 3, 3),
            "float16",
            True,
            options={"groups": 4, "activation": activation},
        )
        yield Case(
            f"act {name} pw",
            (1, 8, 5, 5),
            (8, 8, 1, 1),
            "float16",
            True,
            True,
            True,
            options={"activation": activation},
        )
        yield Case(f"act {name} dense", (1, 4, 5, 5), (4, 4, 2, 2), "float32", options={"activation": activation})


CASES = (*_depthwise(), *_pointwise(), *_dense(), *_epilogues())
