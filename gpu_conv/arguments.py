"""Arguments of a call -> a validated ``ConvProblem`` and views of the arrays in its canonical axis order.

Everything that differs between operators, layouts and front ends ends here: a transposed convolution becomes a
convolution of the dilated input with the flipped filter, batch groups and the five-axis filter become the group axis,
a layout becomes an axis order. Only views are made, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import layout as layouts
from . import options as opt
from . import requantize as requantization
from .arrays import Array, address, common_library, dtype_name, name_of, namespace, overlap
from .dtypes import QUANTISED, Dtypes, kind, resolve
from .epilogue import ACTIVATIONS, INTEGER_ACTIVATIONS, Activation
from .geometry import Spatial
from .problem import ITEMSIZE, REQUANTIZATION, ConvProblem, Tensor


@dataclass(frozen=True)
class View:
    """How to look at an array in canonical axis order: transpose, split an axis, perhaps swap the first two."""

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    swap: bool = False

    def __call__(self, array: Array) -> Array:
        view = array.transpose(self.axes).reshape(self.shape)
        return view.swapaxes(0, 1) if self.swap else view


@dataclass(frozen=True)
class Call:
    """One convolution ready to run.

    Attributes:
        problem: what to compute.
        operands: canonical views of the arrays by name, None where absent.
        result: the array to return, in the user's layout; ``operands["y"]`` is a view of it.
        library: "numpy" or "cupy".
        x_view, y_view: how ``operands["x"]`` and ``operands["y"]`` were made.
    """

    problem: ConvProblem
    operands: dict[str, Array | None]
    result: Array
    library: str
    x_view: View
    y_view: View


def prepare(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    rank: int | None = None,
    transposed: bool = False,
    strides: Any = 1,
    padding: Any = 0,
    dilations: Any = 1,
    groups: Any = 1,
    input_dilations: Any = 1,
    batch_groups: Any = 1,
    flip_filter: bool = False,
    output_padding: Any = 0,
    output_sizes: Any = None,
    input_layout: str | None = None,
    filter_layout: str | None = None,
    output_layout: str | None = None,
    activation: Any = None,
    residual: Array | None = None,
    x_zero_point: Any = 0,
    w_zero_point: Any = 0,
    requantize: Any = None,
    out: Array | None = None,
    out_dtype: Any = None,
    precision: str = "ieee",
    allocate: bool = True,
    empty: Callable[[tuple[int, ...], np.dtype[Any]], Array] | None = None,
) -> Call:
    """Validate everything and build the call. Raises ValueError or TypeError before anything is computed.

    With ``allocate=False`` the result is a stand-in without memory: for plans of outputs that need not fit into it.
    ``empty`` makes the array of the result; without it the library of the arrays does.
    """
    library = common_library(x=x, w=w, bias=bias, residual=residual, out=out)
    xp = namespace(library)
    nd = _rank(x, rank)
    x_layout = input_layout or layouts.default_data(nd)
    w_layout = filter_layout or layouts.default_filter(nd, transposed)
    y_layout = output_layout or x_layout
    x_axes = layouts.data_axes(_text("input_layout", x_layout), nd)
    y_axes = layouts.data_axes(_text("output_layout", y_layout), nd, "output_layout")
    dtypes = resolve(x, w, out_dtype, out, precision, requantize)

    pair = _Pair(x, w, x_layout, w_layout, nd, transposed)
    x_view, w6 = pair.views(opt.integer("groups", groups, 1), opt.integer("batch_groups", batch_groups, 1), x_axes)
    if flip_filter != transposed:
        w6 = w6[(slice(None),) * 3 + (slice(None, None, -1),) * nd]
    x6 = x_view(x)
    spatial = Spatial(tuple(x6.shape[3:]), tuple(w6.shape[3:]), str(pair))
    if transposed:
        geometry = spatial.transposed(strides, padding, dilations, output_padding, output_sizes)
    else:
        geometry = spatial.forward(strides, padding, dilations, input_dilations)

    shape = (x6.shape[0], w6.shape[0] * w6.shape[1], *geometry.out_spatial)
    user_shape = tuple(shape[y_axes.index(a)] for a in range(nd + 2))
    if prod(user_shape) * ITEMSIZE[dtypes.out] > opt.LIMIT:
        raise ValueError(f"the output {user_shape} ({y_layout}) of {dtypes.out} exceeds 2^63 - 1 bytes")
    if allocate:
        result = _output(out, user_shape, y_layout, dtypes.out, empty or xp.empty, (x, w))
    else:
        result = xp.broadcast_to(xp.empty((), np.dtype(dtypes.out)), user_shape)
    y_view = View(y_axes, (x6.shape[0], *w6.shape[:2], *geometry.out_spatial))
    y6 = y_view(result)
    residual6 = None if residual is None else y_view(_same_as_output(residual, user_shape, y_layout, dtypes.out))
    bias1 = _bias(bias, shape[1], (1,) * y_axes[1] + (-1,) + (1,) * (nd + 1 - y_axes[1]), dtypes, xp)
    if requantize is not None:
        _requantizes_alone(activation, residual)
        bias1 = requantization.pack(requantize, bias1, shape[1], dtypes.out, xp)
    zero_points = (
        _zero_point("x_zero_point", x_zero_point, x, 1, xp),
        _zero_point("w_zero_point", w_zero_point, w, shape[1], xp),
    )
    problem = ConvProblem(
        x=tensor(x6),
        w=tensor(w6),
        y=tensor(y6),
        strides=geometry.strides,
        padding=geometry.padding,
        dilations=geometry.dilations,
        input_dilations=geometry.input_dilations,
        accumulate=dtypes.accumulate,
        bias=REQUANTIZATION if requantize is not None else None if bias1 is None else name_of(bias1.dtype),
        residual=None if residual6 is None else tensor(residual6),
        activation=_activation(activation, dtypes),
        x_zero_point=zero_points[0] is not None,
        w_zero_point=zero_points[1] is not None,
        precision=precision,
    )
    operands = {
        "x": x6,
        "w": w6,
        "bias": bias1,
        "residual": residual6,
        "x_zero_point": zero_points[0],
        "w_zero_point": zero_points[1],
        "y": y6,
    }
    return Call(problem, operands, result, library, x_view, y_view)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string like 'nchw', got {value!r}")
    return value


def _rank(x: Array, rank: int | None) -> int:
    if rank is not None and x.ndim != rank + 2:
        raise ValueError(
            f"conv{rank}d needs an input with {rank + 2} axes ({layouts.default_data(rank)}), got x {x.shape}; "
            "conv takes any number of spatial axes"
        )
    if x.ndim < 2:
        raise ValueError(f"x needs a batch and a channel axis, got x {x.shape}")
    return int(x.ndim) - 2


@dataclass(frozen=True)
class _Pair:
    """The input and filter of a call with their layouts: what errors about shapes speak of."""

    x: Array
    w: Array
    x_layout: str
    w_layout: str
    rank: int
    transposed: bool

    def __str__(self) -> str:
        return f"got x {tuple(self.x.shape)} ({self.x_layout}) and w {tuple(self.w.shape)} ({self.w_layout})"

    def views(self, groups: int, batch_groups: int, x_axes: tuple[int, ...]) -> tuple[View, Array]:
        """The view of x as ``n g c *spatial``, and w as ``g o c *filter``."""
        if groups > 1 and batch_groups > 1:
            raise ValueError(f"groups={groups} and batch_groups={batch_groups} cannot both exceed 1; {self}")
        w = self._filter(max(groups, batch_groups))
        if any(k == 0 for k in w.shape[3:]):
            raise ValueError(f"filter sizes must be at least 1; {self}")
        n, c, *spatial = (self.x.shape[a] for a in x_axes)
        i = w.shape[2]
        if batch_groups > 1:
            if n % batch_groups or c != i:
                raise ValueError(
                    f"batch_groups={batch_groups} needs n of x % batch_groups == 0 and c of x == i of w; {self}"
                )
            return View(x_axes, (batch_groups, n // batch_groups, c, *spatial), swap=True), w
        if c != groups * i:
            needs = "c of x == i of w" if self.transposed else "c of x == groups * i of w"
            raise ValueError(f"groups={groups} needs {needs}; {self}")
        return View(x_axes, (n, groups, i, *spatial)), w

    def _filter(self, groups: int) -> Array:
        if self.w.ndim != len(self.w_layout):
            raise ValueError(f"w needs the {len(self.w_layout)} axes of its layout; {self}")
        w = self.w.transpose(layouts.filter_axes(_text("filter_layout", self.w_layout), self.rank))
        if "g" in self.w_layout:
            if w.shape[0] != groups:
                raise ValueError(f"the g axis of w must equal groups={groups}; {self}")
            return w
        axis, letter = (1, "i") if self.transposed else (0, "o")
        if w.shape[axis] % groups:
            raise ValueError(f"groups={groups} needs {letter} of w % groups == 0; {self}")
        w = w.reshape(*w.shape[:axis], groups, w.shape[axis] // groups, *w.shape[axis + 1 :])
        return w.transpose(1, 0, 2, *range(3, self.rank + 3)) if self.transposed else w


def tensor(view: Array) -> Tensor:
    """The description of a canonical view."""
    itemsize = view.dtype.itemsize
    start = address(view)
    return Tensor(
        name_of(view.dtype),
        tuple(view.shape),
        layouts.settled(view.shape, [s // itemsize for s in view.strides]),
        min(16, start & -start) if start else 16,
    )


def _output(
    out: Array | None,
    shape: tuple[int, ...],
    layout: str,
    dtype: str,
    empty: Callable[[tuple[int, ...], np.dtype[Any]], Array],
    inputs: tuple[Array, ...],
) -> Array:
    if out is None:
        return empty(shape, np.dtype(dtype))
    _same_as_output(out, shape, layout, dtype, "out")
    if not getattr(out.flags, "writeable", True):
        raise ValueError("out is read-only")
    if any(overlap(out, array) for array in inputs):
        raise ValueError("out must not share memory with x or w")
    return out


def _same_as_output(array: Array, shape: tuple[int, ...], layout: str, dtype: str, name: str = "residual") -> Array:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} must have the shape of the output {shape} ({layout}), got {tuple(array.shape)}")
    if name_of(array.dtype) != dtype:
        raise TypeError(f"{name} must have the dtype of the output, {dtype}, got {array.dtype}")
    return array


def _bias(bias: Array | None, channels: int, form: tuple[int, ...], dtypes: Dtypes, xp: Any) -> Array | None:
    """The bias as a contiguous vector in the accumulation dtype, or in the output's where it has that already.

    ``form`` is the shape of a bias that broadcasts to the output, with -1 on the channel axis.
    """
    if bias is None:
        return None
    found = tuple(bias.shape)
    allowed = [(channels,), (1,), *(tuple(size if f == -1 else 1 for f in form) for size in (channels, 1))]
    if found not in allowed:
        raise ValueError(
            f"bias must have the shape ({channels},), one per output channel, or {allowed[2]}, got {found}"
        )
    dtype = dtype_name(bias, "bias")
    if kind(dtype) != kind(dtypes.accumulate):
        raise TypeError(f"bias must be {kind(dtypes.accumulate)} like the {dtypes.accumulate} sum, got {dtype}")
    keep = dtype if dtype in (dtypes.accumulate, dtypes.out) else dtypes.accumulate
    return xp.ascontiguousarray(xp.broadcast_to(bias.reshape(-1), (channels,)), dtype=np.dtype(keep))


def _requantizes_alone(activation: Any, residual: Array | None) -> None:
    for name, value in (("activation", activation), ("residual", residual)):
        if value is not None:
            raise ValueError(f"{name} and requantize cannot be combined: what is requantised is stored")


def _activation(value: Any, dtypes: Dtypes) -> Activation | None:
    activation = Activation.parse(value)
    defined = {"floating": ACTIVATIONS, "integer": INTEGER_ACTIVATIONS, "complex": ()}[kind(dtypes.accumulate)]
    if activation and activation.name not in defined:
        raise TypeError(f"activation {activation.name!r} is not defined for {dtypes.accumulate} sums")
    return activation


def _zero_point(name: str, value: Any, of: Array, channels: int, xp: Any) -> Array | None:
    """An int32 vector of ``channels`` elements in the range of the array that it belongs to.

    None where all are known to be 0, which kernels compute faster; what lies on the GPU is not read.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value == 0:
        return None
    on_gpu = xp is not np and hasattr(value, "__cuda_array_interface__")
    array = (xp if on_gpu else np).asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if array.shape not in ((), (1,), (channels,)):
        wants = "a scalar" if channels == 1 else f"a scalar or ({channels},), one per output channel,"
        raise ValueError(f"{name} must be {wants} got the shape {tuple(array.shape)}")
    if name_of(of.dtype) not in QUANTISED:
        raise TypeError(f"{name} needs int8 or uint8 inputs, got {of.dtype}")
    if on_gpu and array.dtype != of.dtype:
        raise TypeError(f"{name} on the GPU must have the dtype of its array, {of.dtype}, got {array.dtype}")
    limits = np.iinfo(of.dtype)
    if not on_gpu and not ((limits.min <= array) & (array <= limits.max)).all():
        raise ValueError(f"{name} must be in the range of {of.dtype}, got {value!r}")
    if not on_gpu and not array.any():
        return None
    return xp.ascontiguousarray(xp.broadcast_to(xp.asarray(array).astype(np.int32).reshape(-1), (channels,)))
