"""Convolutions that one kernel may compute together: expand, depthwise, project and residual of MobileNetV2's block.

They stay three nodes. What is found here are candidates; whether a kernel takes one, and is faster, depends
on the shape of the input and is decided when a plan is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

from .ir import Graph, Node


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbouring convolutions.

    Attributes:
        node: one node in place of all: the input, then filter and bias of every convolution, absent ones as "".
        members: the nodes, in order.
    """

    node: Node
    members: tuple[Node, ...]


def find(graph: Graph) -> dict[int, Block]:
    """The candidates by the ``id`` of their first node. One may begin within another."""
    finder = _Finder(graph)
    blocks = {}
    for node in graph.nodes:
        if finder.is_convolution(node):
            spreads = node.attrs["group"] == 1
            block = finder.block(node, finder.reader(node)) if spreads else finder.block(None, node)
            if block:
                blocks[id(node)] = block
    return blocks


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.constants = graph.constants
        self.consumers = graph.consumers()
        self.outputs = {port.name for port in graph.outputs}

    def is_convolution(self, node: Node | None) -> bool:
        """Whether it is two-dimensional, and its filter and bias are the same in every run."""
        if node is None or node.op != "Conv":
            return False
        w = self.constants.get(node.inputs[1])
        return w is not None and w.ndim == 4 and all(name in self.constants for name in node.inputs[2:3] if name)

    def filter(self, node: Node) -> tuple[int, ...]:
        """Output channels of a group, input channels of a group, rows and columns."""
        outputs, *rest = self.constants[node.inputs[1]].shape
        return (outputs // node.attrs["group"], *rest)

    def reader(self, node: Node) -> Node | None:
        """The only node that reads the result of this one."""
        name = node.outputs[0]
        readers = self.consumers.get(name, [])
        once = len(readers) == 1 and list(readers[0].uses).count(name) == 1 and name not in self.outputs
        return readers[0] if once else None

    def block(self, expand: Node | None, depthwise: Node | None) -> Block | None:
        if depthwise is None or not self.is_convolution(depthwise) or self.filter(depthwise) != (1, 1, 3, 3):
            return None
        project = self.reader(depthwise)
        if project is None or not self.is_convolution(project) or not self.is_plain(project):
            return None
        members = tuple(node for node in (expand, depthwise, project) if node)
        first, (x, residual) = members[0], (members[0].inputs[0], project.inputs[3:])
        if residual not in ([], [x]) or any(node.inputs[3:] for node in members[:-1]):
            return None
        if any({1, *(node.attrs.get("dilations") or ())} != {1} for node in members):
            return None
        operands = [name for node in (expand, depthwise, project) for name in _weights(node)]
        attributes = {"members": members, "residual": bool(residual)}
        name = " to ".join(node.name for node in (first, project)) if first.name and project.name else ""
        return Block(Node("InvertedResidual", name, [x, *operands], project.outputs, attributes), members)

    def is_plain(self, node: Node) -> bool:
        """Whether a convolution works on every pixel by itself, and on all channels."""
        if self.filter(node)[2:] != (1, 1) or node.attrs["group"] != 1:
            return False
        steps = [*(node.attrs.get("strides") or ()), *(node.attrs.get("dilations") or ())]
        kernel, pads = node.attrs.get("kernel_shape"), node.attrs.get("pads")
        return tuple(kernel or (1, 1)) == (1, 1) and {1, *steps} == {1} and not any(pads or ())


def _weights(node: Node | None) -> list[str]:
    return [*node.inputs[1:3], ""][:2] if node else ["", ""]
