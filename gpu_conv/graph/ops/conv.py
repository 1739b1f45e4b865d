"""Convolutions: each node is a ``gpu_conv`` layer with its bias, residual and activation fused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...explain import explain
from ...layer import Conv
from ...layout import spatial_axes
from ...ops import conv as convolve
from ...ops import conv_transpose as convolve_transposed
from ...problem import output_size
from ..errors import ModelError
from ..ir import Array, Node
from .elementwise import activate
from .registry import Call, op

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Window:
    """Kernel, strides and dilations of a node, one integer per spatial axis, and where its padding comes from."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    auto: str
    explicit: Pads

    @classmethod
    def of(cls, node: Node, kernel: tuple[int, ...]) -> Window:
        """Read the attributes; absent or empty ones mean 1 (strides, dilations) and 0 (pads)."""
        rank = len(kernel)
        a = node.attrs
        declared = tuple(a.get("kernel_shape") or kernel)
        if declared != kernel:
            raise ModelError(f"kernel_shape {declared} differs from the filter's {kernel}")
        strides, dilations = (tuple(a.get(k) or (1,) * rank) for k in ("strides", "dilations"))
        pads = a.get("pads") or [0] * 2 * rank
        if len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
            raise ModelError(
                f"strides {strides}, dilations {dilations} and pads {pads} (2 per axis) must fit {rank} spatial axes"
            )
        if min(*kernel, *strides, *dilations, 1) < 1:
            raise ModelError(f"kernel {kernel}, strides {strides} and dilations {dilations} must be at least 1")
        auto = a.get("auto_pad", "NOTSET")
        if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            raise ModelError(f"auto_pad {auto!r} is unknown")
        return cls(kernel, strides, dilations, auto, tuple(zip(pads[:rank], pads[rank:], strict=True)))

    def pads(self, spatial: tuple[int, ...]) -> Pads:
        """The padding for one input size."""
        if self.auto == "NOTSET":
            return self.explicit
        if self.auto == "VALID":
            return ((0, 0),) * len(spatial)
        pairs = []
        for n, k, s, d in zip(spatial, self.kernel, self.strides, self.dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            small, large = total // 2, total - total // 2
            pairs.append((small, large) if self.auto == "SAME_UPPER" else (large, small))
        return tuple(pairs)


def layouts(rank: int, transposed: bool = False) -> dict[str, Any]:
    """The layouts of a convolution within the graph: data channels last, filters as ONNX has them."""
    axes = spatial_axes(rank)
    return {"input_layout": f"n{axes}c", "filter_layout": ("io" if transposed else "oi") + axes}


def geometry(call: Call, spatial: tuple[int, ...], w: Array) -> dict[str, Any]:
    """Strides, dilations, padding, groups and device of a node, as options of the package's operators."""
    window = Window.of(call.node, w.shape[2:])
    rank = len(window.kernel)
    return {
        "strides": window.strides,
        "dilations": window.dilations,
        "padding": ((0, 0),) * rank if call.padded else window.pads(spatial),
        "groups": call.attrs["group"],
        "device": call.device,
    }


def _conv_kernel(call: Call, x: Array, w: Array, bias: Array | None = None, residual: Array | None = None) -> str:
    options, fused = _fused_options(call, x, w, residual)
    return explain(x, w, bias, residual=residual if fused else None, **options).kernel


@op("Conv", layout="last", data=(0, 3), out=True, kernel=_conv_kernel)
def conv(call: Call, x: Array, w: Array, bias: Array | None = None, residual: Array | None = None) -> Array:
    """A convolution; ``residual`` and the attribute ``activation`` come from fusion.

    The layer (filter packed, plans cached) is kept with the node. Where all arrays are the same in every run, it is
    bound to them.
    """
    if call.bound is not None:
        return call.bound()
    if call.constant_filter:
        key = x.shape, None if residual is None else residual.shape, call.padded
        layer, fused = call.remember(key, lambda: _plan(call, x, w, bias, residual))
    else:
        layer, fused = _plan(call, x, w, bias, residual)
    if fused and call.fixed:
        call.bound = layer.bind(x, residual=residual, out=call.out)
        return call.bound()
    if fused:
        return layer(x, residual=residual, out=call.out)
    y = _broadcast_sum(call, layer(x), residual)
    spec = call.attrs.get("activation")
    return activate(spec, y) if spec else y


def _broadcast_sum(call: Call, y: Array, residual: Array) -> Array:
    """A sum that has another shape than the convolution's result, perhaps more axes: nothing to fuse into."""
    if residual.ndim == y.ndim:
        return call.xp.add(y, residual)
    y, residual = (call.xp.moveaxis(a, -1, 1) for a in (y, residual))  # ONNX aligns the last axes of its own order
    return call.xp.moveaxis(y + residual, 1, -1)


def _plan(call: Call, x: Array, w: Array, bias: Array | None, residual: Array | None) -> tuple[Any, bool]:
    """What computes the node for one input shape, and whether it takes residual and activation too."""
    options, fused = _fused_options(call, x, w, residual)
    if not call.constant_filter:
        return lambda x, residual=None, out=None: convolve(x, w, bias, residual=residual, out=out, **options), fused
    return call.remember(tuple(options.items()), lambda: Conv(w, bias, **options)), fused


def _fused_options(call: Call, x: Array, w: Array, residual: Array | None) -> tuple[dict[str, Any], bool]:
    """Options of the convolution, activation included if the residual has the shape of the result."""
    spatial = x.shape[1:-1]
    if x.ndim != w.ndim:
        raise ModelError(f"input has {x.ndim} axes, the filter {w.ndim}")
    options = geometry(call, spatial, w)
    window = zip(spatial, w.shape[2:], options["strides"], options["padding"], options["dilations"], strict=True)
    shape = (x.shape[0], *(output_size(n, k, s, lo, hi, d) for n, k, s, (lo, hi), d in window), w.shape[0])
    fused = residual is None or residual.shape == shape
    options["activation"] = call.attrs.get("activation") if fused else None
    return options | layouts(len(spatial)), fused


@op("CausalConvWithState", layout="last", data=(0, 3))
def causal_conv_with_state(
    call: Call, x: Array, w: Array, bias: Array | None = None, past: Array | None = None
) -> tuple[Array, Array]:
    """A depthwise convolution that looks back only; ``past`` holds the ``filter - 1`` columns before ``x``.

    The second result is what the next call takes as ``past``.
    """
    if x.ndim != 3 or w.ndim != 3 or w.shape[:2] != (x.shape[2], 1):
        raise ModelError(
            f"needs an input (n, c, length) and a filter (c, 1, k), got {x.shape[2]} channels and {w.shape}"
        )
    n, length, channels = x.shape
    back = w.shape[2] - 1
    if past is not None and past.shape != (n, back, channels):
        raise ModelError(f"past_state must hold {back} columns of {n} x {channels} channels (filter {w.shape})")
    state = call.xp.zeros((n, back, channels), x.dtype) if past is None else past
    present = call.xp.concatenate([state, x[:, max(0, length - back) :]], axis=1)
    if past is not None:
        x = call.xp.concatenate([past, x], axis=1)
    y = convolve(
        x,
        w,
        bias,
        groups=channels,
        padding=((back if past is None else 0, 0),),
        activation=None if call.attrs["activation"] == "none" else "silu",
        device=call.device,
        **layouts(1),
    )
    return y, present[:, present.shape[1] - back :]


def _first(x: Array) -> tuple[int, ...]:
    """The shape in ONNX's order, for messages."""
    return (x.shape[0], x.shape[-1], *x.shape[1:-1])


def _transpose_kernel(call: Call, x: Array, w: Array, bias: Array | None = None) -> str:
    options, _ = _transposed_options(call, x, w)
    return explain(x, w, bias, transposed=True, **options).kernel


@op("ConvTranspose", layout="last", out=True, kernel=_transpose_kernel)
def conv_transpose(call: Call, x: Array, w: Array, bias: Array | None = None) -> Array:
    """A transposed convolution; the attribute ``activation`` comes from fusion."""
    options, missing = _transposed_options(call, x, w)
    spec = call.attrs.get("activation")
    if not any(missing):
        return convolve_transposed(x, w, bias, activation=spec, out=call.out, **options)
    y = call.xp.pad(convolve_transposed(x, w, **options), [(0, 0), *((0, n) for n in missing), (0, 0)])
    y = y if bias is None else y + bias
    return activate(spec, y, call.out) if spec else y


def _transposed_options(call: Call, x: Array, w: Array) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Options of the transposed convolution, and how many rows ``output_shape`` asks for beyond its result."""
    window = Window.of(call.node, w.shape[2:])
    rank = len(window.kernel)
    if x.ndim != w.ndim:
        raise ModelError(f"input has {x.ndim} axes, the filter {w.ndim}")
    more = tuple(call.attrs.get("output_padding") or (0,) * rank)
    pads, missing = _transposed_pads(call.attrs, window, x.shape[1:-1], more)
    options: dict[str, Any] = {
        "strides": window.strides,
        "dilations": window.dilations,
        "padding": pads,
        "output_padding": more,
        "groups": call.attrs["group"],
        "device": call.device,
        **layouts(rank, transposed=True),
    }
    return options, missing


def _transposed_pads(
    attrs: dict[str, Any], window: Window, spatial: tuple[int, ...], more: tuple[int, ...]
) -> tuple[Pads, tuple[int, ...]]:
    """Padding of a transposed convolution, and how many rows ``output_shape`` asks for beyond its result.

    The odd element goes to the end for SAME_UPPER and to the beginning otherwise (for NOTSET too).
    """
    wanted = attrs.get("output_shape")
    if not wanted:
        if not window.auto.startswith("SAME"):
            return window.pads(spatial), (0,) * len(spatial)
        wanted = [n * s for n, s in zip(spatial, window.strides, strict=True)]
    axes = zip(spatial, window.kernel, window.strides, window.dilations, more, wanted, strict=True)
    pairs, missing = [], []
    for n, k, s, d, extra, size in axes:
        total = s * (n - 1) + extra + (k - 1) * d + 1 - size
        small, large = max(0, total) // 2, max(0, total) - max(0, total) // 2
        pairs.append((small, large) if window.auto == "SAME_UPPER" else (large, small))
        missing.append(max(0, -total))
    return tuple(pairs), tuple(missing)
