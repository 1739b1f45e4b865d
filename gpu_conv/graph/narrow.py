"""A float32 graph computed in another type: weights are rounded once, everything between inputs and outputs follows.

Left in float32: the bias of a convolution (it is added to float32 sums), and operands that are read on the host (the
scales of a ``Resize``). Inputs and outputs keep the types that the file declares; the planner converts them, but for
the results of matrix products, whose float32 sums need no rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from .errors import ModelError
from .ir import Graph, Host, Node
from .ops import OPS
from .tensors import DTYPES

SUPPORTED = ("float32", "float16")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_PRODUCTS = ("Gemm", "MatMul")
_INTEGER = ("QLinearConv", "ConvInteger", "QuantizeLinear", "DequantizeLinear")


def narrow(graph: Graph, dtype: np.dtype[Any]) -> Graph:
    """Rewrite in place.

    Raises:
        ModelError: a quantised model, whose scales are float32; a weight that the type cannot hold.
    """
    _weights(graph, dtype)
    made, read = graph.producers(), graph.consumers()
    for port in graph.outputs:
        node = made.get(port.name)
        if node and node.op in _PRODUCTS and port.dtype == np.float32 and port.name not in read:
            node.attrs["out_dtype"] = port.dtype
    return graph


def _weights(graph: Graph, dtype: np.dtype[Any]) -> None:
    for node in graph.nodes:
        if node.op in _INTEGER:
            raise ModelError(f"{node}: a quantised model is computed as it is, leave dtype={dtype.name!r} away")
        for branch in node.graphs:
            _weights(branch, dtype)
        _attributes(node, dtype)
        row = OPS[node.op]
        for i, name in enumerate(node.inputs):
            value = graph.constants.get(name)
            bias = node.op in _CONVOLUTIONS and i == 2
            if value is not None and value.dtype == np.float32 and i not in row.host and not bias:
                rounded = f"{name} as {dtype.name}"
                if rounded not in graph.constants:
                    graph.constants[rounded] = _rounded(node, name, value, dtype)
                node.inputs[i] = rounded


def _rounded(node: Node, name: str, value: Host, dtype: np.dtype[Any]) -> Host:
    try:
        with np.errstate(over="raise"):  # of what was infinite before, NumPy says nothing
            return value.astype(dtype)
    except FloatingPointError as error:
        largest = np.abs(value[np.isfinite(value)]).max()
        raise ModelError(f"{node}: {name!r} holds {largest:.3g}, which {dtype.name} cannot") from error


def _attributes(node: Node, dtype: np.dtype[Any]) -> None:
    """Attributes that name float32 as the type of a result."""
    for key in ("to", "dtype"):
        if node.attrs.get(key) == TensorProto.FLOAT:
            node.attrs[key] = helper.np_dtype_to_tensor_dtype(dtype)
    value = node.attrs.get("value")
    if node.op == "ConstantOfShape":
        given = np.zeros(1, np.float32) if value is None else value
        node.attrs["value"] = given.astype(dtype) if given.dtype == DTYPES[TensorProto.FLOAT] else given
