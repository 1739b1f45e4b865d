"""Convolution as operators of PyTorch: they may stand in a model, and ``torch.compile(fullgraph=True)`` takes them.

Example:
    >>> import torch, gpu_conv.torch                                                           # doctest: +SKIP
    >>> block = torch.compile(lambda x: gpu_conv.torch.conv(x, w, padding=1, activation="relu6"))  # doctest: +SKIP

The operators are for inference: asking one for a gradient raises. (``gpu_conv.conv`` takes tensors too, but to PyTorch
it is a black box.)
"""

from __future__ import annotations

from ast import literal_eval
from math import prod
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"gpu_conv.torch needs {error.name}: pip install torch", name=error.name) from error
from torch import Tensor

from . import layout as layouts
from . import ops
from .geometry import Spatial

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .ops import ConvOptions, ConvTransposeOptions

__all__ = ["conv", "conv_transpose"]

# What decides on the size of the result, in the order in which ``Spatial`` takes it, with the defaults.
_FORWARD = {"strides": 1, "padding": 0, "dilations": 1, "input_dilations": 1}
_TRANSPOSED = {"strides": 1, "padding": 0, "dilations": 1, "output_padding": 0, "output_sizes": None}
_OPTIONS = {*_FORWARD, *_TRANSPOSED, "groups", "batch_groups", "flip_filter", "input_layout", "filter_layout"}
_OPTIONS |= {"output_layout", "activation", "out_dtype", "precision", "kernel", "device"}


def conv(x: Tensor, w: Tensor, bias: Tensor | None = None, **options: Unpack[ConvOptions]) -> Tensor:
    """:func:`gpu_conv.conv` on tensors of one device: the operator ``torch.ops.gpu_conv.conv``.

    Args:
        x, w, bias, **options: as there, except ``out``, zero points and requantisation.

    Raises:
        ValueError, TypeError: as there.
        RuntimeError: the gradient was asked for.
    """
    residual = options.pop("residual", None)
    result: Tensor = _conv(x, w, bias, residual, _text(**options))
    return result


def conv_transpose(x: Tensor, w: Tensor, bias: Tensor | None = None, **options: Unpack[ConvTransposeOptions]) -> Tensor:
    """:func:`gpu_conv.conv_transpose` on tensors of one device: the operator ``torch.ops.gpu_conv.conv_transpose``.

    Args:
        x, w, bias, **options: as there, except ``out``, zero points and requantisation.

    Raises:
        ValueError, TypeError: as there.
        RuntimeError: the gradient was asked for.
    """
    residual = options.pop("residual", None)
    result: Tensor = _conv_transpose(x, w, bias, residual, _text(**options))
    return result


def _text(**options: Any) -> str:
    """The options as an operator's schema can hold them; ``literal_eval`` reads them again.

    ``torch.compile`` traces this; formatting a symbolic size makes it a constant with a guard, ``repr`` does not.
    """
    words = []
    for name, value in options.items():
        if name not in _OPTIONS:
            raise TypeError(f"the operators of gpu_conv.torch take no option {name}; gpu_conv.conv may")
        if isinstance(value, Tensor):
            raise TypeError(f"{name} must be numbers in an operator of gpu_conv.torch, got a tensor")
        if name == "out_dtype" and value is not None:
            value = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else np.dtype(value).name
        if value is not None:
            words.append(f"'{name}': {_literal(value)}")
    return "{" + ", ".join(words) + "}"


def _literal(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "(" + "".join([f"{_literal(item)}, " for item in value]) + ")"
    if isinstance(value, str):
        return f"'{value}'"
    return f"{value}".replace("inf", "1e999")


@torch.library.custom_op("gpu_conv::conv", mutates_args=())  # type: ignore[untyped-decorator]
def _conv(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, options: str) -> Tensor:
    with torch.no_grad():
        return ops.conv(x, w, bias, residual=residual, **literal_eval(options))


@torch.library.custom_op("gpu_conv::conv_transpose", mutates_args=())  # type: ignore[untyped-decorator]
def _conv_transpose(x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, options: str) -> Tensor:
    with torch.no_grad():
        return ops.conv_transpose(x, w, bias, residual=residual, **literal_eval(options))


def _like_result(x: Tensor, w: Tensor, options: dict[str, Any], transposed: bool) -> Tensor:
    """An empty tensor with the result's shape and dtype; the sizes of x and w may be symbols."""
    rank = x.ndim - 2
    x_layout = options.get("input_layout") or layouts.default_data(rank)
    w_layout = options.get("filter_layout") or layouts.default_filter(rank, transposed)
    y_axes = layouts.data_axes(options.get("output_layout") or x_layout, rank, "output_layout")
    batch, _, *sizes = (x.shape[a] for a in layouts.data_axes(x_layout, rank))
    *channels, _ = (w.shape[a] for a in layouts.filter_axes(w_layout, rank)[: w.ndim - rank])
    taps = tuple(w.shape[a] for a in layouts.filter_axes(w_layout, rank)[w.ndim - rank :])
    spatial = Spatial(tuple(sizes), taps, f"got x {tuple(x.shape)} ({x_layout}) and w {tuple(w.shape)} ({w_layout})")
    geometry = spatial.transposed if transposed else spatial.forward
    defaults = _TRANSPOSED if transposed else _FORWARD
    per_group = transposed and "g" not in w_layout  # there o counts the output channels of one group
    shape = (
        batch // options.get("batch_groups", 1),
        prod(channels) * (options.get("groups", 1) if per_group else 1),
        *geometry(*(options.get(name, default) for name, default in defaults.items())).out_spatial,
    )
    dtype = getattr(torch, np.dtype(options["out_dtype"]).name) if "out_dtype" in options else x.dtype
    return x.new_empty([shape[y_axes.index(a)] for a in range(rank + 2)], dtype=dtype)


def _no_gradient(context: Any, gradient: Tensor) -> None:
    raise RuntimeError(
        "gpu_conv computes no gradients: run the model under torch.no_grad() or torch.inference_mode(), or freeze the "
        "parameters before this layer with requires_grad_(False)"
    )


for _operator, _transposed in ((_conv, False), (_conv_transpose, True)):
    _operator.register_fake(
        lambda x, w, bias, residual, options, _transposed=_transposed: _like_result(
            x, w, literal_eval(options), _transposed
        )
    )
    _operator.register_autograd(_no_gradient)
