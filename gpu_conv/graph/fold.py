"""What does not depend on the inputs is done once, when the model is loaded."""

from __future__ import annotations

from math import prod

import numpy as np

from .errors import EXPECTED, NodeError
from .ir import Graph, Host, Node
from .limits import TooLarge, at_most
from .ops import OPS, Call
from .tensors import DTYPES

MAX_FOLDED = 1 << 26  # elements of a folded constant; larger ones are made when the model runs
TRANSPARENT = ("Identity", "Dropout")
# Their padding can make a result of any size out of one number; constant ones are rare.
WINDOWED = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv", "AveragePool", "MaxPool"})

MULTIPLIED = frozenset({"MatMul", "Gemm", "Gather"})  # as large as the product of their operands


def fold(graph: Graph) -> Graph:
    """Simplify in place: transparent nodes, constant nodes, decided branches, nodes that nobody reads."""
    drop_unread(graph)
    renamed: dict[str, str] = {}
    outputs = {port.name for port in graph.outputs}
    nodes: list[Node] = []
    for node in graph.nodes:
        node.inputs = [renamed.get(i, i) for i in node.inputs]
        _rename_captures(node, renamed)
        for part in _simplify(graph, node):
            if part.op in TRANSPARENT and part.outputs[0] not in outputs and not any(part.outputs[1:]):
                renamed[part.outputs[0]] = renamed.get(part.inputs[0], part.inputs[0])
            else:
                nodes.append(part)
    graph.nodes = nodes
    drop_unread(graph)
    return graph


def _simplify(graph: Graph, node: Node) -> list[Node]:
    """The nodes that remain of one: itself, nothing if it became constants, or the nodes of a decided branch."""
    for branch in node.graphs:
        for name in branch.captures:
            if name in graph.constants:
                branch.constants[name] = graph.constants[name]
        branch.captures = tuple(c for c in branch.captures if c not in graph.constants)
        fold(branch)
    if not all(name in graph.constants for name in node.inputs if name):
        return [node]
    if node.op == "If":
        return _inlined(graph, node)
    if node.graphs or node.op not in OPS:
        return [node]
    operands = [graph.constants[i] if i else None for i in node.inputs]
    if node.op in WINDOWED or _most(node, operands) > MAX_FOLDED:
        return [node]
    try:
        with at_most(MAX_FOLDED):
            results = OPS[node.op].run(Call(node), *operands)
    except TooLarge:
        return [node]
    except EXPECTED as error:
        raise NodeError.wrap(node, error) from error
    results = results if isinstance(results, tuple) else (results,)
    if sum(r.size for r in results) > MAX_FOLDED or any(r.dtype not in DTYPES.values() for r in results):
        return [node]
    graph.constants.update((name, r) for name, r in zip(node.outputs, results, strict=False) if name)
    return []


def _most(node: Node, operands: list[Host | None]) -> int:
    """A bound for the elements of a result that no attribute enlarges: operands broadcast, joined or multiplied."""
    shapes = [a.shape for a in operands if a is not None]
    sizes = [prod(shape) for shape in shapes]
    if node.op in MULTIPLIED:
        return prod(sizes)
    try:
        return max(sum(sizes), prod(np.broadcast_shapes(*shapes)))
    except ValueError:  # joined, or a tensor and numbers about it
        return sum(sizes)


def _inlined(graph: Graph, node: Node) -> list[Node]:
    """The branch of an If with a constant condition, in place of the If."""
    condition = graph.constants[node.inputs[0]]
    branch = node.attrs["then_branch" if condition.any() else "else_branch"]
    taken = set(graph.producers()) | set(graph.constants) | {p.name for p in graph.inputs}
    if taken & {o for n in branch.nodes for o in n.outputs if o} - set(node.outputs):
        return [node]  # names that mean something else outside: the executor keeps them apart
    graph.constants.update((k, v) for k, v in branch.constants.items() if k not in graph.constants)
    ends = [
        Node("Identity", node.name, [port.name], [name])
        for name, port in zip(node.outputs, branch.outputs, strict=True)
        if name != port.name
    ]
    return [*branch.nodes, *ends]


def _rename_captures(node: Node, renamed: dict[str, str]) -> None:
    for graph in node.graphs:
        changed = {c: renamed[c] for c in graph.captures if c in renamed}
        if changed:
            graph.captures = tuple(dict.fromkeys(changed.get(c, c) for c in graph.captures))
            _rename(graph, changed)


def _rename(graph: Graph, changed: dict[str, str]) -> None:
    """Let a subgraph read captured values under other names."""
    for node in graph.nodes:
        node.inputs = [changed.get(i, i) for i in node.inputs]
        _rename_captures(node, changed)
    if changed.keys() & {p.name for p in graph.outputs}:
        for port in [p for p in graph.outputs if p.name in changed]:
            graph.nodes.append(Node("Identity", "", [changed[port.name]], [port.name]))


def drop_unread(graph: Graph) -> Graph:
    """Remove in place the nodes and constants that no output needs; an output that nobody reads loses its name."""
    read = {port.name for port in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if read.intersection(filter(None, node.outputs)):
            node.outputs = [o if o in read else "" for o in node.outputs]
            kept.append(node)
            read.update(node.uses)
    graph.nodes = kept[::-1]
    graph.constants = {k: v for k, v in graph.constants.items() if k in read}
    graph.captures = tuple(c for c in graph.captures if c in read)
    return graph
