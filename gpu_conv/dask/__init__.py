"""Convolution of dask arrays: batches over many workers, images and volumes larger than one GPU's memory.

Every chunk of the output is one call of :func:`gpu_conv.conv` on the part of the input that it needs, so any stride,
dilation, padding, layout and chunking is exact. Chunks may be NumPy or CuPy arrays; a NumPy filter is moved to where
they are. Nothing is computed before ``compute()``, and wrong calls raise at once.

Needs the extra ``dask``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import dask.array as da
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gpu_conv.dask needs {error.name}: pip install 'gpu-conv[dask]'", name=error.name
    ) from error
from dask.array.core import normalize_chunks

from .. import arguments, execute
from .. import layout as layouts
from ..arrays import Array, library
from .checks import check, stand_in
from .graph import Filter, Grid, Operator
from .model import map_model
from .tiles import Chunks, Plan

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..ops import ConvOptions, ConvTransposeOptions

__all__ = [
    "conv",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "map_model",
]

_PER_CHANNEL = ("w_zero_point", "requantize")
_SAME = ("activation", "x_zero_point", "precision", "kernel", "device")  # in every tile as in the call


def conv(x: da.Array, w: Any, bias: Any = None, *, chunks: Any = None, **options: Unpack[ConvOptions]) -> da.Array:
    """:func:`gpu_conv.conv` of a dask array.

    Args:
        x: dask array of NumPy or CuPy chunks, chunked along any axes.
        w, bias: arrays as in :func:`gpu_conv.conv`, or dask arrays: every worker gets them whole.
        chunks: chunks of the output in any form that dask takes, in the order of its axes. By default those of x: the
            batch as it is, spatial chunks where the middle of the window lies in x's, output channels in one chunk, or
            with groups in chunks of those groups that x's chunks hold. A tile needs memory for its part of x and its
            output chunk. Chunks of output channels are whole groups, or parts of one.
        **options: those of :func:`gpu_conv.conv` except ``out``; ``residual`` may be a dask array.

    Returns:
        Dask array with chunks of x's kind. Integers are equal to the result on one machine, bit for bit; floats too
        where all sums are exact or the kernel sums in a fixed order (``kernel="direct"`` on the GPU), otherwise they
        differ by the order of additions. The result depends on the chunks, not on workers or schedulers.

    Raises:
        ValueError: shapes, values or chunks that break a rule, before anything is computed.
        TypeError: dtypes or array kinds that do not fit.

    Example:
        >>> import dask.array as da, numpy as np, gpu_conv.dask
        >>> x = da.ones((1, 1, 7, 8), chunks=(1, 1, 3, 8), dtype=np.float32)
        >>> y = gpu_conv.dask.conv(x, np.ones((1, 1, 3, 3), np.float32), strides=2, padding=1)
        >>> y.chunks
        ((1,), (1,), (2, 1, 1), (4,))
        >>> y.compute()[0, 0, 0]
        array([4., 6., 6., 6.], dtype=float32)
    """
    return _call(None, False, x, w, bias, chunks, dict(options))


def conv1d(x: da.Array, w: Any, bias: Any = None, *, chunks: Any = None, **options: Unpack[ConvOptions]) -> da.Array:
    """:func:`conv` over one spatial axis."""
    return _call(1, False, x, w, bias, chunks, dict(options))


def conv2d(x: da.Array, w: Any, bias: Any = None, *, chunks: Any = None, **options: Unpack[ConvOptions]) -> da.Array:
    """:func:`conv` over two spatial axes."""
    return _call(2, False, x, w, bias, chunks, dict(options))


def conv3d(x: da.Array, w: Any, bias: Any = None, *, chunks: Any = None, **options: Unpack[ConvOptions]) -> da.Array:
    """:func:`conv` over three spatial axes."""
    return _call(3, False, x, w, bias, chunks, dict(options))


def conv_transpose(
    x: da.Array, w: Any, bias: Any = None, *, chunks: Any = None, **options: Unpack[ConvTransposeOptions]
) -> da.Array:
    """:func:`gpu_conv.conv_transpose` of a dask array; arguments, result and errors as in :func:`conv`.

    Example:
        >>> import dask.array as da, numpy as np, gpu_conv.dask
        >>> x = da.ones((1, 1, 6), chunks=(1, 1, 4), dtype=np.float32)
        >>> y = gpu_conv.dask.conv_transpose(x, np.ones((1, 1, 3), np.float32), strides=2)
        >>> y.compute()
        array([[[1., 1., 2., 1., 2., 1., 2., 1., 2., 1., 2., 1., 1.]]],
              dtype=float32)
    """
    return _call(None, True, x, w, bias, chunks, dict(options))


def conv_transpose1d(
    x: da.Array, w: Any, bias: Any = None, *, chunks: Any = None, **options: Unpack[ConvTransposeOptions]
) -> da.Array:
    """:func:`conv_transpose` over one spatial axis."""
    return _call(1, True, x, w, bias, chunks, dict(options))


def conv_transpose2d(
    x: da.Array, w: Any, bias: Any = None, *, chunks: Any = None, **options: Unpack[ConvTransposeOptions]
) -> da.Array:
    """:func:`conv_transpose` over two spatial axes."""
    return _call(2, True, x, w, bias, chunks, dict(options))


def conv_transpose3d(
    x: da.Array, w: Any, bias: Any = None, *, chunks: Any = None, **options: Unpack[ConvTransposeOptions]
) -> da.Array:
    """:func:`conv_transpose` over three spatial axes."""
    return _call(3, True, x, w, bias, chunks, dict(options))


def _call(
    rank: int | None, transposed: bool, x: Any, w: Any, bias: Any, chunks: Any, options: dict[str, Any]
) -> da.Array:
    """Validate, plan, and build the graph."""
    if options.pop("out", None) is not None:
        raise TypeError("a dask result is not written into out; dask.array.store(y, out) does that chunk by chunk")
    kind = check(x, "x")
    execute.device_of(kind, options.get("device"))
    w, bias = _whole(w, "w", kind), None if bias is None else _whole(bias, "bias", kind)
    for name in _PER_CHANNEL:
        if name in options:
            options[name] = _host(options[name])
    call = _prepare(x, w, bias, rank, transposed, options)

    problem, result, groups = call.problem, call.result, options.get("batch_groups", 1)
    input_layout = options.get("input_layout") or layouts.default_data(problem.rank)
    output_layout = options.get("output_layout") or input_layout
    x_axes, y_axes = (layouts.data_axes(layout, problem.rank) for layout in (input_layout, output_layout))
    plan = Plan(problem, groups)
    followed = plan.follow([x.chunks[axis] for axis in x_axes])
    wanted = _chunks(chunks, result, [followed[axis] for axis in np.argsort(y_axes)])
    if not result.size:
        return da.empty_like(x, dtype=result.dtype, shape=result.shape, chunks=wanted)
    same = {
        "strides": problem.strides,
        "dilations": problem.dilations,
        "input_dilations": problem.input_dilations,
        "flip_filter": options.get("flip_filter", False) != transposed,
        "input_layout": input_layout,
        "output_layout": output_layout,
        "out_dtype": result.dtype.name,
    }
    operator = Operator(
        Filter.of(options.get("filter_layout") or layouts.default_filter(problem.rank, transposed), transposed),
        problem.groups,
        groups > 1,
        same | {name: options[name] for name in _SAME if name in options},
        {name: options[name] for name in _PER_CHANNEL if name in options},
    )
    grid = Grid(x, plan.parts([wanted[axis] for axis in y_axes]), x_axes, y_axes)
    return grid.build(operator, result.dtype, w, bias, options.get("residual"))


def _whole(array: Any, name: str, kind: str) -> da.Array:
    """A filter or bias as a dask array of one chunk."""
    if not isinstance(array, da.Array):
        library(array, name)
        array = da.from_array(array, chunks=-1, asarray=False)
    if check(array, name) == "cupy" and kind == "numpy":
        raise TypeError(f"{name} is a CuPy array, but x has NumPy chunks")
    return array.rechunk(-1)


def _host(value: Any) -> Any:
    """Zero points and scales: numbers, or NumPy arrays whatever they were."""
    if isinstance(value, tuple):
        return tuple(map(_host, value))
    if hasattr(value, "get"):
        return value.get()
    return np.asarray(value) if isinstance(value, list) else value


def _prepare(
    x: da.Array, w: da.Array, bias: da.Array | None, rank: int | None, transposed: bool, options: dict[str, Any]
) -> arguments.Call:
    """The call that one machine would run, checked on stand-ins: arrays of the same shapes without memory."""
    given = {name: value for name, value in options.items() if name not in ("kernel", "device")}
    residual = given.get("residual")
    if residual is not None:
        (check if isinstance(residual, da.Array) else library)(residual, "residual")
        given["residual"] = stand_in(residual.shape, residual.dtype)
    arrays = (a if a is None else stand_in(a.shape, a.dtype) for a in (x, w, bias))
    return arguments.prepare(*arrays, rank=rank, transposed=transposed, allocate=False, **given)


def _chunks(wanted: Any, result: Array, followed: list[Chunks]) -> tuple[Chunks, ...]:
    """The output's chunks, in the order of its axes."""
    if wanted is None:
        return tuple(followed)
    return tuple(normalize_chunks(wanted, result.shape, dtype=result.dtype, previous_chunks=tuple(followed)))
