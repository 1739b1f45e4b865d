"""Blocks of convolutions in one launch: see ``graph/blocks.py``."""

from __future__ import annotations

from typing import Any

from ...blocks import InvertedResidual
from ...problem import output_size
from ..ir import Array, Node
from .conv import geometry, layouts
from .registry import Call, op


def _in_one_launch(call: Call, x: Array, *weights: Array | None) -> bool:
    return x.ndim == 4 and _layer(call, x, weights).in_one_launch(x)


def _kernel(call: Call, x: Array, *weights: Array | None) -> str:
    return "inverted_residual" if _in_one_launch(call, x, *weights) else "3 convolutions"


@op("InvertedResidual", layout="last", out=True, kernel=_kernel, pays=_in_one_launch)
def inverted_residual(call: Call, x: Array, *weights: Array | None) -> Array:
    """Expand (or not), depthwise and project; the layer is kept with the node, bound where all arrays are."""
    if call.bound is not None:
        return call.bound()
    layer = _layer(call, x, weights)
    if call.fixed:
        call.bound = layer.bind(x, out=call.out)
        return call.bound()
    return layer(x, out=call.out)


def _layer(call: Call, x: Array, weights: tuple[Array | None, ...]) -> InvertedResidual:
    expand, expand_bias, depthwise, depthwise_bias, project, bias = weights
    *first, middle, last = call.attrs["members"]
    spatial, options = x.shape[1:-1], dict[str, Any]()
    windows: list[tuple[Node, Array, str]] = [(node, expand, "expand_") for node in first]
    for node, w, prefix in [*windows, (middle, depthwise, "")]:
        found = geometry(Call(node, call.xp, call.device), spatial, w)
        strides, padding = found["strides"], found["padding"]
        options |= {prefix + "strides": strides, prefix + "padding": padding}
        axes = zip(spatial, w.shape[2:], strides, padding, strict=True)
        spatial = tuple(output_size(n, k, s, lo, hi, 1) for n, k, s, (lo, hi) in axes)

    def make() -> InvertedResidual:
        return InvertedResidual(
            expand,
            depthwise,
            project,
            bias,
            expand_bias=expand_bias,
            depthwise_bias=depthwise_bias,
            expand_activation=first[0].attrs.get("activation") if first else None,
            depthwise_activation=middle.attrs.get("activation"),
            activation=last.attrs.get("activation"),
            residual=call.attrs["residual"],
            device=call.device,
            **options,
            **layouts(2),
        )

    layer: InvertedResidual = call.remember(tuple(options.items()), make)
    return layer
