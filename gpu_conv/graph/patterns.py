"""Activations and channel shuffles that exporters spell out in several nodes, turned back into one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .ir import Graph, Node


def recognise(graph: Graph) -> Graph:
    """Rewrite in place: ``x * sigmoid(x)`` to Silu, the forms of hard swish, gelu and the channel shuffle to theirs.

    Nodes that nobody reads any more stay until ``fold.drop_unread``.
    """
    finder = _Finder(graph)
    for i, node in enumerate(graph.nodes):
        made = next(filter(None, (rule(node) for rule in finder.rules)), None)
        if made:
            op, x, attributes = made
            graph.nodes[i] = Node(op, node.name, [x], node.outputs, attributes)
            finder.made[node.outputs[0]] = graph.nodes[i]
        finder.learn(graph.nodes[i])
        for branch in node.graphs:
            recognise(branch)
    return graph


SHUFFLE = [0, 2, 1, 3, 4]
_KEEPS_CHANNELS = {"BatchNormalization", "ChannelShuffle", "MaxPool", "AveragePool", "Identity"}
_KEEPS_CHANNELS |= {"Relu", "Clip", "LeakyRelu", "Silu", "HardSwish", "Sigmoid"}

# Operator, operand, attributes.
Match = tuple[str, str, dict[str, Any]]


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.made = graph.producers()
        self.constants = graph.constants
        self.channels: dict[str, int] = {}  # of the values whose number is known
        self.rules: tuple[Callable[[Node], Match | None], ...] = (
            self.silu,
            self.swish,
            self.hard_swish,
            self.gelu,
            self.channel_shuffle,
        )

    def scalar(self, name: str) -> float | None:
        value = self.constants.get(name)
        return float(value.reshape(())[()]) if value is not None and value.size == 1 else None

    def produced(self, name: str, op: str) -> Node | None:
        node = self.made.get(name)
        return node if node is not None and node.op == op else None

    def pairs(self, node: Node, op: str) -> list[tuple[str, str]]:
        """The operands of a commutative node in both orders; nothing if the node is another operator."""
        return [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])] if node.op == op else []

    def scaled(self, node: Node) -> tuple[str, float] | None:
        """``(x, factor)`` of a product or quotient with a scalar."""
        for a, b in self.pairs(node, "Mul"):
            factor = self.scalar(b)
            if factor is not None:
                return a, factor
        divisor = self.scalar(node.inputs[1]) if node.op == "Div" else None
        return (node.inputs[0], 1 / divisor) if divisor else None

    def shifted(self, name: str, by: float) -> str | None:
        """``x`` where the value is ``x + by``."""
        node = self.produced(name, "Add")
        return next((a for a, b in self.pairs(node, "Add") if self.scalar(b) == by), None) if node else None

    def silu(self, node: Node) -> Match | None:
        for x, gate in self.pairs(node, "Mul"):
            sigmoid = self.produced(gate, "Sigmoid")
            if sigmoid and sigmoid.inputs[0] == x:
                return "Silu", x, {}
        return None

    def swish(self, node: Node) -> Match | None:
        return ("Silu", node.inputs[0], {}) if node.op == "Swish" and node.attrs["alpha"] == 1 else None

    def relu6_of_x_plus_3(self, name: str) -> str | None:
        clip = self.produced(name, "Clip")
        if clip is None:
            return None
        bounds = (clip.attrs["min"], clip.attrs["max"]) if clip.version < 11 else map(self.scalar, clip.inputs[1:3])
        return self.shifted(clip.inputs[0], 3) if tuple(bounds) == (0, 6) else None

    def hard_swish(self, node: Node) -> Match | None:
        """``x * hard_sigmoid(x)``, ``x * clip(x + 3, 0, 6) / 6`` and ``x * (clip(x + 3, 0, 6) / 6)``."""
        for x, gate in self.pairs(node, "Mul"):
            hard = self.produced(gate, "HardSigmoid")
            if hard and hard.inputs[0] == x and _close(hard.attrs["alpha"], 1 / 6) and hard.attrs["beta"] == 0.5:
                return "HardSwish", x, {}
            scaled = self.scaled(self.made[gate]) if gate in self.made else None
            if scaled and _close(scaled[1], 1 / 6) and self.relu6_of_x_plus_3(scaled[0]) == x:
                return "HardSwish", x, {}
        scaled = self.scaled(node)
        product = self.produced(scaled[0], "Mul") if scaled and _close(scaled[1], 1 / 6) else None
        for x, gate in self.pairs(product, "Mul") if product else []:
            if self.relu6_of_x_plus_3(gate) == x:
                return "HardSwish", x, {}
        return None

    def gelu(self, node: Node) -> Match | None:
        """``x * (erf(x / sqrt 2) + 1) * 0.5``, the half in any place."""
        if node.op != "Mul":
            return None
        factors = self.factors(node.outputs[0], 3)
        halves = [f for f in factors if self.scalar(f) == 0.5]
        others = [f for f in factors if self.scalar(f) is None]
        if len(halves) != 1 or len(others) != 2:
            return None
        for x, gate in (others, others[::-1]):
            inner = self.shifted(gate, 1)
            erf = self.produced(inner, "Erf") if inner else None
            scaled = self.scaled(self.made[erf.inputs[0]]) if erf and erf.inputs[0] in self.made else None
            if scaled and scaled[0] == x and _close(scaled[1], math.sqrt(0.5)):
                return "Gelu", x, {"approximate": "none"}
        return None

    def channel_shuffle(self, node: Node) -> Match | None:
        """``[n, c, h, w] -> [n, g, c / g, h, w] -> [n, c / g, g, h, w] -> [n, c, h, w]``."""
        turned = self.produced(node.inputs[0], "Transpose") if node.op == "Reshape" else None
        split = self.produced(turned.inputs[0], "Reshape") if turned and turned.attrs.get("perm") == SHUFFLE else None
        shapes = [self.constants.get(n.inputs[1]) for n in (split, node)] if split else []
        if split is None or any(s is None for s in shapes):
            return None
        inner, outer = ([int(v) for v in s] for s in shapes if s is not None)
        if len(inner) != 5 or len(outer) != 4 or inner[1] < 1 or inner[3:] != outer[2:] or min(inner[2:]) < 1:
            return None
        same_batch = inner[0] == outer[0] or {inner[0], outer[0]} <= {0, -1}
        known = self.channels.get(split.inputs[0]) == inner[1] * inner[2] and outer[1] in (-1, inner[1] * inner[2])
        return ("ChannelShuffle", split.inputs[0], {"groups": inner[1]}) if same_batch and known else None

    def learn(self, node: Node) -> None:
        """Note how many channels the results of a node have, where that follows from its operands."""
        operands = [self.channels.get(name, 0) for name in node.inputs]
        results: list[int] = []
        if node.op == "Conv":
            w = self.constants.get(node.inputs[1])
            results = [len(w)] if w is not None and w.ndim else []
        elif node.op in _KEEPS_CHANNELS:
            results = operands[:1]
        elif node.op == "Concat" and node.attrs["axis"] == 1 and all(operands):
            results = [sum(operands)]
        elif node.op == "Split" and node.attrs["axis"] == 1:
            sizes = self.constants.get(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("split")
            if sizes is not None:
                results = [int(n) for n in sizes]
            elif operands[0] % len(node.outputs) == 0:
                results = [operands[0] // len(node.outputs)] * len(node.outputs)
        self.channels.update((name, count) for name, count in zip(node.outputs, results, strict=False) if count > 0)

    def factors(self, name: str, limit: int) -> list[str]:
        """The operands of a product of products, at most ``limit`` of them."""
        node = self.produced(name, "Mul")
        if node is None or limit < 2:
            return [name]
        left = self.factors(node.inputs[0], limit - 1)
        return left + self.factors(node.inputs[1], limit - len(left))


def _close(a: float, b: float) -> bool:
    return bool(np.isclose(a, b, rtol=1e-5, atol=0))
