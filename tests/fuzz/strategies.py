"""Any convolution: operators, ranks, layouts, dtypes, paddings, groups, epilogues, arrays that lie oddly in memory."""

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") a name)
import numpy as np
from hypothesis import strategies as st

from tests.fuzz.oracle import letters

FLOATS = ("float32", "float16", "bfloat16", "float64")
BYTES = ("int8", "uint8")
OTHERS = ("int16", "uint16", "int32", "uint32", "int64", "uint64", "complex64", "complex128")
# Continuous ones with a known slope; the others only where the sums are exact.
SMOOTH = (
    "relu", "relu6", "sigmoid", "tanh", "silu", "hard_sigmoid", "hard_swish", "gelu", "elu", "softplus",
    ("clip", -1.5, 2.0), ("leaky_relu", 0.25), ("elu", 0.5), ("hard_sigmoid", 0.25, 0.5),
)  # fmt: skip
EXACT = ("softsign", ("celu", 0.5), ("thresholded_relu", 1.0), ("shrink", 0.5, 1.5), ("clip", 0, 3))


@dataclass(repr=False)
class Drawn:
    """A call of ``gpu_conv.conv`` or ``conv_transpose``.

    Attributes:
        transposed: which of the two.
        exact: whether all numbers are small integers, whose sums are exact.
        spelled: what the oracle reads: every option in its longest form.
        options: what the call gets.
        pick: which of the kernels that take it runs it; 0: the one that the package takes.
    """

    transposed: bool
    exact: bool
    x: Any
    w: Any
    bias: Any
    residual: Any
    spelled: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    pick: int = 0

    def __repr__(self):
        arrays = ", ".join(
            f"{n}: {a.dtype} {a.shape} strides {a.strides}"
            for n, a in (("x", self.x), ("w", self.w), ("bias", self.bias))
            if a is not None
        )
        name = "conv_transpose" if self.transposed else "conv"
        return f"{name}({arrays}, residual={self.residual}, exact={self.exact}, pick={self.pick}, {self.options})"

    def _repr_pretty_(self, printer, cycle):  # what Hypothesis shows
        printer.text(repr(self))


def numbers(rng, shape, dtype, exact):
    kind = np.dtype(dtype)
    if dtype in BYTES:
        info = np.iinfo(kind)
        return rng.integers(info.min, info.max, shape, endpoint=True).astype(kind)
    if kind.kind in "iu":
        return rng.integers(0 if kind.kind == "u" else -3, 4, shape).astype(kind)
    values = rng.integers(-3, 4, shape) if exact else rng.standard_normal(shape)
    if kind.kind == "c":
        values = values + 1j * rng.integers(-3, 4, shape)
    return values.astype(kind)


def placed(rng, array, how):
    """The same numbers elsewhere in memory: backwards, with gaps, or off every alignment but the element's."""
    if how == "reversed" and array.ndim:
        axis = int(rng.integers(array.ndim))
        return np.flip(np.ascontiguousarray(np.flip(array, axis)), axis)
    if how == "gaps" and array.ndim:
        axis = int(rng.integers(array.ndim))
        return np.repeat(array, 2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
    if how == "offset":
        buffer = np.empty(array.size + 3, array.dtype)
        view = buffer[int(rng.integers(1, 4)) :][: array.size].reshape(array.shape)
        view[...] = array
        return view
    if how == "transposed":
        return np.asfortranarray(array)
    return array


class Choices:
    """Everything that is chosen, from whole numbers: ``integer(low, high)`` gives one of low to high."""

    def __init__(self, integer):
        self.integer = integer

    def of(self, values):
        return values[self.integer(0, len(values) - 1)]

    def flag(self, of=2):
        """True once in so many times."""
        return self.integer(0, of - 1) == of - 1

    def order(self, letters):
        left = list(letters)
        return "".join(left.pop(self.integer(0, len(left) - 1)) for _ in letters)


@st.composite
def calls(draw, emulated=False):
    """Calls as Hypothesis draws and shrinks them."""
    return call(lambda low, high: draw(st.integers(low, high)), emulated)


def call(integer, emulated=False):
    """One call from a source of whole numbers; with ``emulated`` of a size and dtype that the CUDA kernels take."""
    choose = Choices(integer)
    rng = np.random.default_rng(integer(0, 2**32 - 1))
    transposed = choose.flag(3)
    rank = choose.of((2, 2, 1, 3) if emulated else (2, 2, 1, 3, 0, 4))
    kind = choose.of(("float",) * 4 + ("bytes",) * (not transposed) + ("other",) * (not emulated))
    if kind == "float":
        dtype = w_dtype = choose.of(FLOATS)
    elif kind == "bytes":
        dtype, w_dtype = choose.of(BYTES), choose.of(BYTES)
    else:
        dtype = w_dtype = choose.of(OTHERS)
    floating = kind == "float"
    exact = not floating or choose.flag()

    def some(low, high):
        return tuple(integer(low, high) for _ in range(rank))

    groups, i, o = channels(choose)
    batch_groups = 1
    n = choose.of((1, 1, 2, 3, 0))
    if not transposed and groups > 1 and choose.flag(5):
        groups, batch_groups, n = 1, groups, groups * max(n, 1)
    small = 3 if rank > 2 else 5
    size, k = some(1, 5 if rank > 2 else 9), some(1, small)
    if rank in (1, 2) and choose.flag(4):
        size = (*size[:-1], integer(10, 70))
    if rank and choose.flag(20) and not transposed:
        size = (0, *size[1:])
    if choose.flag(3):
        k = (1,) * rank
    strides, dilations = some(1, 4), some(1, 3)
    input_dilations = some(1, 3) if not transposed and choose.flag(3) else (1,) * rank
    names = letters(rank)
    data, letter = "nc" + names, "io" if transposed else "oi"
    all_groups = max(groups, batch_groups)
    layout = choose.of(("first", "last", "random"))
    if layout == "last":
        xl, wl = f"n{names}c", f"{letter[0]}{names}{letter[1]}"
    elif layout == "random":
        xl, wl = choose.order(data), choose.order(letter + names)
    else:
        xl, wl = data, letter + names
    five = not transposed and choose.flag(8)
    if five:
        wl = choose.order("goi" + names)
    yl = choose.order(data) if choose.flag(4) else xl

    sizes = dict(zip(names, zip(size, k)))
    counts = {"n": n, "c": i if batch_groups > 1 else groups * i}
    x = numbers(rng, [counts.get(a) if a in counts else sizes[a][0] for a in xl], dtype, exact)
    filters = {"g": all_groups, "o": o if five or transposed else all_groups * o, "i": groups * i if transposed else i}
    w = numbers(rng, [filters.get(a) if a in filters else sizes[a][1] for a in wl], w_dtype, exact)
    where = choose.of(("as is",) * 3 + ("reversed", "gaps", "offset", "transposed"))
    x, w = placed(rng, x, where), placed(rng, w, where)

    spelled = dict(
        strides=strides, dilations=dilations, groups=groups, input_layout=xl, filter_layout=wl, output_layout=yl
    )
    given = {}
    if transposed:
        reach = [(kk - 1) * d for kk, d in zip(k, dilations)]
        pads = tuple((integer(-1, r), integer(-1, r)) for r in reach)
        extra = tuple(integer(0, max(s, d) - 1) for s, d in zip(strides, dilations))
        full = [(m - 1) * s + r + 1 for m, s, r in zip(size, strides, reach)]
        out = tuple(f - lo - hi + e for f, (lo, hi), e in zip(full, pads, extra))
        if min(out, default=1) < 1:  # refused: a test of its own
            pads, out = ((0, 0),) * rank, tuple(f + e for f, e in zip(full, extra))
        spelled |= dict(padding=pads, output_padding=extra)
        if all(e < s for e, s in zip(extra, strides)) and choose.flag():
            given = dict(output_sizes=out)
        else:
            given = dict(output_padding=extra)
        given |= dict(padding=pads)
    else:
        padding = choose.of(("valid", "same_upper", "same_lower", "pairs", "pairs", "pairs"))
        if padding == "pairs":
            padding = tuple((integer(-2, 5), integer(-2, 5)) for _ in range(rank))
        spelled |= dict(padding=padding, input_dilations=input_dilations, batch_groups=batch_groups)
        given = dict(padding=padding, input_dilations=input_dilations, batch_groups=batch_groups)
    made = Drawn(transposed, exact, x, w, None, None, spelled)
    made.options = {**{key: value for key, value in spelled.items() if key not in ("output_padding",)}, **given}
    _epilogue(choose, rng, made, all_groups * o, dtype, kind)
    made.pick = integer(0, 11) if emulated else 0
    if not transposed and rank and choose.flag(6):
        made.options["flip_filter"] = True
        spatial = tuple(a for a, name in enumerate(wl) if name in names)
        made.spelled["flipped"] = spatial
    return made


def channels(choose):
    """Groups, inputs and outputs per group: usual ones, depthwise, multipliers, dense, and nothing at all."""
    kind = choose.of(("usual", "usual", "depthwise", "depthwise", "wide", "empty"))
    if kind == "usual":
        return choose.of((1, 1, 2, 3, 5, 8)), choose.integer(1, 5), choose.integer(1, 5)
    if kind == "depthwise":
        return choose.of((2, 3, 8, 16, 17, 24)), 1, choose.of((1, 1, 2))
    if kind == "wide":
        return 1, choose.of((8, 16, 24, 33)), choose.of((8, 16, 24, 33))
    return choose.of((1, 2)), choose.of((0, 1)), choose.of((0, 1, 2))


def _epilogue(choose, rng, call, channels, dtype, kind):
    """Bias, residual, activation, zero points, requantisation, the output's dtype."""
    options, spelled = call.options, call.spelled
    if kind == "float" and choose.flag(3):
        options["out_dtype"] = np.dtype(choose.of(FLOATS))
    if kind == "bytes":
        limits, w_limits = np.iinfo(dtype), np.iinfo(call.w.dtype)
        if choose.flag():
            options["x_zero_point"] = spelled["x_zero_point"] = choose.integer(limits.min, limits.max)
        if choose.flag():
            count = channels if choose.flag() else 1
            values = rng.integers(w_limits.min, w_limits.max, count, endpoint=True)
            options["w_zero_point"] = spelled["w_zero_point"] = values
    accumulate = {"float": "float64" if dtype == "float64" else "float32", "bytes": "int32"}.get(kind)
    if accumulate and choose.flag():
        call.bias = numbers(rng, (channels,), accumulate, call.exact)
    if kind == "bytes" and choose.flag(3):
        scale = rng.uniform(1e-4, 1e-2, channels if choose.flag() else ())
        zero = np.dtype(choose.of(BYTES)).type(choose.integer(0, 100))
        options["requantize"] = (np.asarray(scale, np.float32), zero)
    elif kind == "float":
        options["activation"] = choose.of((None, None, *SMOOTH, *(EXACT if call.exact else ())))
        call.residual = choose.of((None, None, True))  # its shape is the result's
    elif kind == "bytes":
        options["activation"] = choose.of((None, "relu", ("clip", -100, 1000)))
        call.residual = choose.of((None, True))
