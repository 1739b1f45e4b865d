"""The graph as the runner sees it: a few small dataclasses, nothing of protobuf."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any  # an array of any namespace; shapes are logical (channels first) unless a comment says otherwise
Host = npt.NDArray[Any]  # a NumPy array


@dataclass
class Node:
    """One operation.

    Attributes:
        op: operator name, an ONNX one or one that a fusion made (``Silu``).
        name: as in the file; may be empty.
        inputs, outputs: value names; an empty name is an absent optional operand.
        attrs: attributes with the schema's defaults filled in; a subgraph is a ``Graph``.
        version: opset version in which the schema of ``op`` last changed.
    """

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    version: int = 0

    def __str__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"node{name} ({self.op} -> {', '.join(repr(o) for o in self.outputs if o)})"

    @property
    def graphs(self) -> list[Graph]:
        """Subgraphs among the attributes."""
        return [a for a in self.attrs.values() if isinstance(a, Graph)]

    @property
    def uses(self) -> Iterator[str]:
        """Values that the node reads, those captured by its subgraphs included."""
        yield from (i for i in self.inputs if i)
        for graph in self.graphs:
            yield from graph.captures


@dataclass(frozen=True)
class Port:
    """A graph input or output: its declared type. ``None`` where the file says nothing.

    Attributes:
        shape: one entry per axis: a size, the name of a symbolic size, or None.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        dtype = self.dtype.name if self.dtype is not None else "any type"
        shape = "any shape" if self.shape is None else "(" + ", ".join(str(s or "?") for s in self.shape) + ")"
        return f"{self.name!r}: {dtype} {shape}"


@dataclass
class Graph:
    """Nodes in topological order, the constants that they read, and the ports.

    Attributes:
        captures: values of the enclosing graph that a subgraph reads, in order of first use.
    """

    name: str
    nodes: list[Node]
    inputs: list[Port]
    outputs: list[Port]
    constants: dict[str, Host]
    captures: tuple[str, ...] = ()

    def consumers(self) -> dict[str, list[Node]]:
        """Value -> nodes that read it (once per node)."""
        table: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.uses):
                table.setdefault(name, []).append(node)
        return table

    def dying(self) -> list[list[str]]:
        """For each node, the values of this graph that nobody reads after it; outputs of the graph never die."""
        kept = {port.name for port in self.outputs}
        own = {port.name for port in self.inputs} | {o for node in self.nodes for o in node.outputs if o}
        last: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            last.update(dict.fromkeys((n for n in (*node.uses, *node.outputs) if n in own and n not in kept), i))
        table: list[list[str]] = [[] for _ in self.nodes]
        for name, i in last.items():
            table[i].append(name)
        return table

    def producers(self) -> dict[str, Node]:
        """Value -> node that makes it."""
        return {o: node for node in self.nodes for o in node.outputs if o}
