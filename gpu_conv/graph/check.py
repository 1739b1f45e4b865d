"""What can be known to be wrong before a model runs."""

from __future__ import annotations

from .errors import EXPECTED, ModelError, NodeError
from .ir import Graph, Host, Node
from .ops import OPS
from .ops.conv import Window

_POOLS = ("MaxPool", "AveragePool")
# Convolution -> the positions of its filter and of its bias among the operands.
_CONVOLUTIONS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "ConvInteger": (1, 4),  # past the last operand: it has none
    "DeformConv": (1, 3),
    "QLinearConv": (3, 8),
}
_RECURRENT = ("LSTM", "GRU")


def check(graph: Graph) -> None:
    """Raise ModelError for an operator, an option or a constant operand that cannot work; subgraphs included."""
    for node in graph.nodes:
        if node.op not in OPS:
            raise ModelError(f"{node}: operator {node.op!r} is not supported")
        try:
            _check(node, graph.constants)
        except EXPECTED as error:
            raise NodeError.wrap(node, error) from error
        for branch in node.graphs:
            check(branch)


def _check(node: Node, constants: dict[str, Host]) -> None:
    a = node.attrs
    if a.get("broadcast", 0):
        raise ModelError("the attribute broadcast of opset 6 is not supported; onnx.version_converter removes it")
    if not a.get("is_test", 1):
        raise ModelError("training mode (is_test=0) is not supported")
    if node.op in _CONVOLUTIONS:
        _convolution(node, constants)
    elif node.op == "CausalConvWithState":
        if a["activation"] not in ("none", "silu", "swish"):
            raise ModelError(f"activation {a['activation']!r} must be 'none', 'silu' or 'swish'")
    elif node.op in _POOLS:
        Window.of(node, tuple(a["kernel_shape"]))
        _no_more_outputs(node, 1, "the indices of a pooling")
    elif node.op == "BatchNormalization":
        _no_more_outputs(node, 1, "training statistics")
        if a.get("training_mode", 0) or not a.get("spatial", 1):
            raise ModelError("training_mode=1 and spatial=0 are not supported")
    elif node.op == "LayerNormalization":
        _no_more_outputs(node, 1, "statistics")
    elif node.op == "Dropout" and len(node.inputs) > 2 and node.inputs[2]:
        mode = constants.get(node.inputs[2])
        if mode is None or mode.any():
            raise ModelError("training mode is not supported")
    elif node.op in _RECURRENT:
        _recurrent(node, constants)
    elif node.op == "Resize" and a.get("antialias", 0):
        raise ModelError("antialias=1 is not supported")
    elif node.op == "LRN" and a["size"] < 1:
        raise ModelError(f"size must be at least 1, got {a['size']}")
    elif node.op == "If":
        for key in ("then_branch", "else_branch"):
            if len(a[key].outputs) != len(node.outputs) or a[key].inputs:
                raise ModelError(f"{key} must have no inputs and {len(node.outputs)} outputs")


def _no_more_outputs(node: Node, count: int, what: str) -> None:
    if any(node.outputs[count:]):
        raise ModelError(f"{what} (output {node.outputs[count]!r}) are not supported")


def _convolution(node: Node, constants: dict[str, Host]) -> None:
    group = node.attrs["group"]
    if group < 1:
        raise ModelError(f"group must be at least 1, got {group}")
    place, bias_place = _CONVOLUTIONS[node.op]
    name = node.inputs[place]
    w = constants.get(name)
    if w is None:
        rank = len(node.attrs.get("kernel_shape") or ())
        if rank:
            Window.of(node, tuple(node.attrs["kernel_shape"]))
        return
    if w.ndim < 3:
        raise ModelError(f"filter {name!r} of shape {w.shape} needs at least 3 axes")
    if 0 in w.shape:
        raise ModelError(f"filter {name!r} of shape {w.shape} is empty")
    Window.of(node, w.shape[2:])
    if w.shape[0] % group:
        raise ModelError(f"filter {name!r} of shape {w.shape} does not divide into group={group}")
    channels = w.shape[1] * group if node.op == "ConvTranspose" else w.shape[0]
    bias_name = node.inputs[bias_place] if len(node.inputs) > bias_place else ""
    bias = constants.get(bias_name)
    if bias is not None and bias.shape != (channels,):
        raise ModelError(f"bias {bias_name!r} must have shape ({channels},), got {bias.shape}")
    if bias is not None and bias.dtype != ("int32" if node.op == "QLinearConv" else w.dtype):
        raise ModelError(f"bias {bias_name!r} is {bias.dtype}, the filter {w.dtype}")
    for key, low in (("output_padding", 0), ("output_shape", 1)):
        given = node.attrs.get(key)
        if given and (len(given) != w.ndim - 2 or min(given) < low):
            raise ModelError(f"{key} {given} must hold {w.ndim - 2} numbers of at least {low}")


def _recurrent(node: Node, constants: dict[str, Host]) -> None:
    direction = node.attrs["direction"]
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ModelError(f"direction {direction!r} is unknown")
    r = constants.get(node.inputs[2])
    hidden = node.attrs.get("hidden_size")
    if r is not None and (r.ndim != 3 or (hidden is not None and hidden != r.shape[2])):
        raise ModelError(f"hidden_size {hidden} does not fit the recurrence filter of shape {r.shape}")
