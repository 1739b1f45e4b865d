"""Operators that are several convolutions, and one kernel where the GPU has one for them."""

from __future__ import annotations

from typing import Any

from . import execute
from .arguments import Call, prepare
from .arrays import Array, namespace
from .borrow import borrow, untraced
from .families import inverted_residual as fused
from .ops import conv2d


@untraced
def inverted_residual(
    x: Array,
    expand_filter: Array | None,
    depthwise_filter: Array,
    project_filter: Array,
    bias: Array | None = None,
    *,
    expand_bias: Array | None = None,
    depthwise_bias: Array | None = None,
    expand_activation: Any = "relu6",
    depthwise_activation: Any = "relu6",
    activation: Any = None,
    residual: bool = False,
    strides: Any = 1,
    padding: Any = 1,
    input_layout: str | None = None,
    filter_layout: str | None = None,
    out: Array | None = None,
    device: str | None = None,
) -> Array:
    """MobileNetV2's block: a 1x1 convolution to more channels, a depthwise one, one to fewer, and x added.

    It equals three calls of :func:`conv2d`, roundings between them included; sums may be added up in another order. On
    the GPU and in the emulator, NumPy and CuPy arrays of float16 or bfloat16 run in one kernel, and the expanded tensor
    never reaches memory, where ``x`` and the result are channels last (``input_layout="nhwc"``), the channels are
    multiples of 8, the depthwise filter is 3x3, and the model in ``families/inverted_residual.py`` predicts a gain. All
    else runs as three convolutions. The filters are packed for the kernel in every call.

    Args:
        x: input ``[n, c, h, w]`` in ``input_layout``.
        expand_filter: ``[e, c, 1, 1]`` in ``filter_layout``, or None: no expansion, e is c.
        depthwise_filter: ``[e, 1, h, w]`` in ``filter_layout``.
        project_filter: ``[o, e, 1, 1]`` in ``filter_layout``.
        bias, expand_bias, depthwise_bias: ``[o]``, ``[e]`` and ``[e]``, or None.
        activation, expand_activation, depthwise_activation: names as in :func:`conv`; ``activation`` comes last.
        residual: whether x is added before ``activation``; then the result has x's shape.
        strides, padding: of the depthwise convolution.
        input_layout, filter_layout, out, device: as in :func:`conv`.

    Returns:
        ``[n, o, out_h, out_w]`` in ``input_layout``, of x's dtype.

    Raises:
        ValueError, TypeError: as :func:`conv`.

    Example:
        >>> import numpy as np, gpu_conv
        >>> x = np.ones((1, 2, 3, 3), np.float32)
        >>> ones = [np.ones(shape, np.float32) for shape in ((4, 2, 1, 1), (4, 1, 3, 3), (2, 4, 1, 1))]
        >>> gpu_conv.inverted_residual(x, *ones, residual=True)[0, 0, 0]
        array([25., 25., 25.], dtype=float32)
    """
    layouts = {"input_layout": input_layout, "filter_layout": filter_layout}
    channels = x.shape[(input_layout or "nchw").index("c")] if x.ndim == 4 else 1
    groups = channels if expand_filter is None else _outputs(expand_filter, filter_layout)
    expand = {"w": expand_filter, "bias": expand_bias, "activation": expand_activation, **layouts}
    depthwise = {"w": depthwise_filter, "bias": depthwise_bias, "activation": depthwise_activation, **layouts}
    depthwise |= {"strides": strides, "padding": padding, "groups": groups}
    project = {"w": project_filter, "bias": bias, "activation": activation, "out": out, **layouts}
    project["residual"] = x if residual else None
    steps = ([expand] if expand_filter is not None else []) + [depthwise, project]
    result = _in_one_launch(x, steps, device)
    if result is None:
        result = x
        for step in steps:
            result = conv2d(result, device=device, **step)
    return result


def _outputs(w: Array, layout: str | None) -> int:
    """Output channels of a filter; 1 where it has not the axes of its layout, which ``conv2d`` will complain about."""
    return int(w.shape[(layout or "oihw").index("o")]) if w.ndim == 4 else 1


def _in_one_launch(x: Array, steps: list[dict[str, Any]], device: str | None) -> Array | None:
    """The result of the steps, or None where no kernel computes them together, or not faster."""
    with borrow({"x": x, "w": steps[0]["w"], "out": steps[-1]["out"]}) as lent:
        if lent.kind not in ("numpy", "cupy") or len({type(x), *(type(step["w"]) for step in steps)}) > 1:
            return None
        where = execute.device_of(lent.library, device)
        if where == "cpu":
            return None
        calls: list[Call] = []
        for step in steps:
            last = step is steps[-1]
            calls.append(prepare(calls[-1].result if calls else x, **step, rank=2, allocate=last))
        problems = [call.problem for call in calls]
        chain = fused.Chain(problems[0] if len(problems) == 3 else None, problems[-2], problems[-1])
        target = execute.target_of(where)
        if fused.refuses(chain, target) or fused.slower(chain, target):
            return None
        tile = fused.tiles(chain, target)[0]
        xp = namespace(lent.library)
        operands = {"x": x, "w": fused.weights(chain, tile, _filters(calls), xp), "y": calls[-1].result}
        bias = calls[-1].operands["bias"]
        operands["bias"] = None if bias is None else xp.asarray(bias, xp.float32)
        execute.launcher(where)(fused.plan(chain, target, tile), operands)
        return calls[-1].result


def _filters(calls: list[Call]) -> dict[str, Array | None]:
    """What ``weights`` packs, from the canonical views ``g o c h w``."""
    *expand, depthwise, project = (call.operands for call in calls)
    filters = {"depthwise": depthwise["w"][:, 0, 0], "project": project["w"][0, :, :, 0, 0]}  # type: ignore[index]
    filters |= {"depthwise_bias": depthwise["bias"], "expand": None, "expand_bias": None}
    if expand:
        filters |= {"expand": expand[0]["w"][0, :, :, 0, 0], "expand_bias": expand[0]["bias"]}  # type: ignore[index]
    return filters
