"""Everything that a convolution can do on the way out is moved into it.

In graph order, each node that reads nothing but a convolution's result and constants (batch normalisation, a factor or
summand per channel), or that is an activation or the sum with another value, becomes part of the convolution:
``activation(conv + bias + residual)``. A batch normalisation that follows no convolution becomes one factor and one
summand per channel (``Affine``) and takes up the same things, but no sum with another value. A ``Pad`` with zeros
becomes part of the convolution that reads it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .ir import Graph, Host, Node
from .ops.elementwise import activation_of

_FUSIBLE = ("Conv", "ConvTranspose", "Affine")
_KEEPS_RANK = {"MaxPool", "AveragePool", "GlobalAveragePool", "LRN", "Concat", "Affine", "BatchNormalization", "Clip"}


def fuse(graph: Graph) -> Graph:
    """Rewrite in place."""
    for node in graph.nodes:
        for branch in node.graphs:
            fuse(branch)
    _Fuser(graph).run()
    return graph


class _Fuser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.constants = graph.constants
        self.consumers = graph.consumers()
        self.outputs = {port.name for port in graph.outputs}
        self.producers: dict[str, Node] = {}
        self.ranks = {port.name: len(port.shape) for port in graph.inputs if port.shape is not None}
        self.gone: set[int] = set()
        self.count = 0

    def run(self) -> None:
        nodes: list[Node] = []
        for node in self.graph.nodes:
            if node.op == "Conv":
                self.take_pad(node)
            fused = self.into_producer(node)
            if fused is not None:  # the convolution moves here, where all its operands exist
                self.gone.add(id(fused))
                node = Node(fused.op, fused.name, fused.inputs, node.outputs, fused.attrs, fused.version)
            elif node.op == "BatchNormalization":
                node = self.affine(node)
            nodes.append(node)
            self.producers.update(dict.fromkeys(filter(None, node.outputs), node))
            rank = self.rank(node)
            if rank:
                self.ranks[node.outputs[0]] = rank
        self.graph.nodes = [n for n in nodes if id(n) not in self.gone]

    def rank(self, node: Node) -> int | None:
        """The number of axes of a node's result, where it is easily known."""
        if node.op in ("Conv", "ConvTranspose"):
            w = self.constants.get(node.inputs[1])
            return w.ndim if w is not None else None
        keeps = node.op in _KEEPS_RANK or activation_of(node, self.constants.get) is not None
        return self.ranks.get(node.inputs[0]) if keeps else None

    def convolution(self, name: str) -> Node | None:
        """The convolution with constant filter whose result has one reader and no other use, and no activation yet."""
        node = self.producers.get(name)
        if node is None or node.op not in _FUSIBLE or "activation" in node.attrs or name in self.outputs:
            return None
        readers = self.consumers.get(name, [])
        constant = all(i in self.constants for i in node.inputs[1:3] if i)
        return node if constant and len(readers) == 1 and list(readers[0].uses).count(name) == 1 else None

    def into_producer(self, node: Node) -> Node | None:
        """The convolution that now does this node's work too, or None."""
        if not node.inputs:
            return None
        if node.op == "BatchNormalization":
            return self.batch_norm(node)
        if node.op in ("Mul", "Div", "Add", "Sub", "Sum") and len(node.inputs) == 2:
            return self.channel_constant(node) or self.residual(node)
        conv = self.convolution(node.inputs[0])
        spec = activation_of(node, self.constants.get) if conv else None
        if conv is None or spec is None:
            return None
        conv.attrs["activation"] = spec
        return conv

    def batch_norm(self, node: Node) -> Node | None:
        conv = self.convolution(node.inputs[0])
        numbers = self.statistics(node)
        if conv is None or numbers is None or len(conv.inputs) > 3 or numbers[0].shape != (self.channels(conv),):
            return None
        return self.scale_and_shift(conv, *numbers)

    def affine(self, node: Node) -> Node:
        """A batch normalisation with constant statistics as one product and one sum."""
        numbers = self.statistics(node)
        if numbers is None:
            return node
        dtype = self.constants[node.inputs[1]].dtype
        operands = [self.constant(v.astype(dtype)) for v in numbers]
        return Node("Affine", node.name, [node.inputs[0], *operands], node.outputs[:1])

    def statistics(self, node: Node) -> tuple[Host, Host] | None:
        """Factor and summand of a batch normalisation per channel, in float64."""
        if any(i not in self.constants for i in node.inputs[1:5]):
            return None
        scale, bias, mean, variance = (self.constants[i].astype(np.float64) for i in node.inputs[1:5])
        if not scale.shape == bias.shape == mean.shape == variance.shape or scale.ndim != 1:
            return None
        factor = scale / np.sqrt(variance + node.attrs["epsilon"])
        return factor, bias - mean * factor

    def channel_constant(self, node: Node) -> Node | None:
        """A product or sum with one number per channel, or with one number."""
        for x, other in (node.inputs, node.inputs[::-1]):
            conv = self.convolution(x)
            value = self.constants.get(other)
            if conv is None or value is None or len(conv.inputs) > 3 or (x, node.op) == (node.inputs[1], "Div"):
                continue
            vector = self.per_channel(conv, value)
            if vector is None:
                continue
            one, zero = np.ones_like(vector), np.zeros_like(vector)
            if node.op in ("Mul", "Div"):
                return self.scale_and_shift(conv, vector if node.op == "Mul" else 1 / vector, zero)
            if node.op == "Sub" and x == node.inputs[1]:
                return self.scale_and_shift(conv, -one, vector)
            return self.scale_and_shift(conv, one, -vector if node.op == "Sub" else vector)
        return None

    def residual(self, node: Node) -> Node | None:
        """The sum with another value: it goes to the convolution that comes last, so the other operand exists."""
        if node.op not in ("Add", "Sum"):
            return None
        order = list(self.producers)
        candidates = []
        for x, other in (node.inputs, node.inputs[::-1]):
            conv = self.convolution(x)
            if conv is not None and conv.op == "Conv" and len(conv.inputs) < 4 and other not in self.constants:
                candidates.append((order.index(x), conv, other))
        if not candidates:
            return None
        _, conv, other = max(candidates, key=lambda c: c[0])
        conv.inputs = [*conv.inputs, *[""] * (3 - len(conv.inputs)), other]
        return conv

    def channels(self, conv: Node) -> int:
        shape = self.constants[conv.inputs[1]].shape
        return int(shape[1] * conv.attrs["group"] if conv.op == "ConvTranspose" else shape[0])

    def per_channel(self, conv: Node, value: Host) -> Host | None:
        """A constant operand as one float64 per channel; None if it varies otherwise or would add axes."""
        channels, rank = self.channels(conv), self.ranks.get(conv.outputs[0], 0)
        shape = (1,) * (rank - value.ndim) + value.shape
        if value.dtype.kind != "f" or len(shape) > rank or shape not in ((1, channels, *shape[2:]), (1,) * rank):
            return None
        return None if any(n != 1 for n in shape[2:]) else np.broadcast_to(value.reshape(-1), channels).astype(float)

    def scale_and_shift(self, conv: Node, factor: Host, shift: Host) -> Node:
        """``conv * factor + shift`` per output channel, computed in float64 and rounded once."""
        w = self.constants[conv.inputs[1]]
        axis = (-1,) + (1,) * (w.ndim - 1)
        if conv.op != "ConvTranspose":
            scaled = w * factor.reshape(axis)
        else:  # [in, out / groups, ...]: input channels of group g meet the factors of its output channels
            groups = conv.attrs["group"]
            blocks = w.reshape(groups, -1, *w.shape[1:]) * factor.reshape(groups, 1, -1, *(1,) * (w.ndim - 2))
            scaled = blocks.reshape(w.shape)
        has_bias = len(conv.inputs) > 2 and conv.inputs[2]
        bias = self.constants[conv.inputs[2]] * factor + shift if has_bias else shift
        conv.inputs = [conv.inputs[0], self.constant(scaled.astype(w.dtype)), self.constant(bias.astype(w.dtype))]
        return conv

    def constant(self, value: Host) -> str:
        name = f"folded {self.count}"
        while name in self.constants:
            self.count += 1
            name = f"folded {self.count}"
        self.constants[name] = value
        return name

    def take_pad(self, conv: Node) -> None:
        """A Pad of the spatial axes with zeros, read by this convolution alone, becomes its padding."""
        pad = self.producers.get(conv.inputs[0])
        if pad is None or pad.op != "Pad" or pad.attrs["mode"] != "constant" or pad.outputs[0] in self.outputs:
            return
        filter_ = self.constants.get(conv.inputs[1])
        amounts = self.pad_amounts(pad)
        if filter_ is None or amounts is None or len(self.consumers[pad.outputs[0]]) != 1:
            return
        rank = filter_.ndim
        if len(amounts) != 2 * rank or any(amounts[i] for i in (0, 1, rank, rank + 1)) or min(amounts) < 0:
            return
        if conv.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return
        own = conv.attrs.get("pads") or [0] * (2 * rank - 4)
        if len(own) != 2 * rank - 4:
            return
        extra = [*amounts[2:rank], *amounts[rank + 2 :]]
        conv.attrs.update(auto_pad="NOTSET", pads=[a + b for a, b in zip(own, extra, strict=True)])
        conv.inputs[0] = pad.inputs[0]
        self.consumers[pad.inputs[0]] = [conv if n is pad else n for n in self.consumers[pad.inputs[0]]]
        self.gone.add(id(pad))

    def pad_amounts(self, pad: Node) -> list[int] | None:
        """The amounts of a Pad with zeros, if they are known."""
        if pad.version < 11:
            return list(pad.attrs["pads"]) if pad.attrs["value"] == 0 else None
        names: list[Any] = [*pad.inputs, "", "", ""][1:4]
        amounts, value, axes = (self.constants.get(n) if n else None for n in names)
        if amounts is None or names[2] or axes is not None or (names[1] and (value is None or np.any(value != 0))):
            return None
        return [int(a) for a in amounts]
