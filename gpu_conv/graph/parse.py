"""An ONNX file to a ``Graph``, everything checked that can be checked without input shapes."""

from __future__ import annotations

import os
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import AttributeProto

from .errors import ModelError
from .ir import Graph, Host, Node, Port
from .limits import Budget, Limits
from .tensors import dtype_of, to_array

OPSETS = range(1, 29)  # 28 is the newest that the operators were written for
_OLDEST = 6  # and this the oldest: in opsets before it, operators that are the same there
DOMAINS = ("", "ai.onnx")


def read(source: Any, limits: Limits) -> tuple[Graph, str]:
    """Parse and validate a model.

    Args:
        source: path of an ``.onnx`` file, its bytes, or an ``onnx.ModelProto``.
        limits: what it may ask for.

    Returns:
        The graph, and a name for messages.

    Raises:
        ModelError: not an ONNX model, or one that breaks a rule; the message names node or tensor and the reason.
        OSError: the file cannot be read.
    """
    folder: Path | None = None
    label = "model"
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        folder, label = path.parent, path.name
        with path.open("rb") as file:  # no more than the limit, whatever the file says of its size
            source = file.read(limits.file_bytes + 1)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) > limits.file_bytes:
            raise ModelError(f"{label}: more than {limits.file_bytes} bytes, the limit (Limits.file_bytes)")
        source = _decode(bytes(source), label)
    if not isinstance(source, onnx.ModelProto):
        raise TypeError(f"model must be a path, bytes or an onnx.ModelProto, got {type(source).__name__}")
    if not source.HasField("graph"):
        raise ModelError(f"{label}: no graph in it: not an ONNX model, or truncated")
    if source.functions:
        raise ModelError(f"{label}: model-local functions are not supported ({source.functions[0].name!r})")
    return _Parser(_opset(source, label), folder, Budget(limits)).graph(source.graph, _Scope(), 0), label


def _decode(data: bytes, label: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{label}: not an ONNX model, or truncated ({len(data)} bytes): {error}") from error
    return model


def _opset(model: onnx.ModelProto, label: str) -> int:
    versions = {_text(o.domain): o.version for o in model.opset_import}
    version = next((versions[d] for d in DOMAINS if d in versions), None)
    if version is None:
        raise ModelError(f"{label}: imports no opset of the domain ai.onnx, only {sorted(versions) or 'none'}")
    newest = newest_opset()
    if not OPSETS[0] <= version <= newest:
        raise ModelError(f"{label}: opset {version} is not supported, only {OPSETS[0]} to {newest}")
    return int(version)


def newest_opset() -> int:
    """The newest opset that both the runner and the installed onnx know."""
    return min(OPSETS[-1], int(onnx.defs.onnx_opset_version()))


@cache
def _schema(op: str, version: int) -> Any:
    try:
        schema = onnx.defs.get_schema(op, version, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


class _Scope:
    """The values that a graph may read: those defined so far, and those of the graphs around it."""

    def __init__(self, names: Container[str] = (), outer: _Scope | None = None) -> None:
        self._names, self._outer = names, outer

    def __contains__(self, name: str) -> bool:
        return name in self._names or (self._outer is not None and name in self._outer)


class _Parser:
    def __init__(self, opset: int, folder: Path | None, budget: Budget) -> None:
        self.opset = opset
        self.folder = folder
        self.budget = budget

    def graph(self, proto: onnx.GraphProto, outer: _Scope, depth: int) -> Graph:
        """One graph; ``outer`` are the values of enclosing graphs that it may read."""
        where = f"graph {proto.name!r}"
        if depth > self.budget.limits.depth:
            raise ModelError(f"{where}: subgraphs nested deeper than {self.budget.limits.depth}")
        self.budget.nodes(len(proto.node), where)
        if proto.sparse_initializer:
            raise ModelError(f"{where}: sparse initializers are not supported")
        constants: dict[str, Host] = {}
        for tensor in proto.initializer:
            name = _text(tensor.name)
            if not name or name in constants or name in outer:
                raise ModelError(f"{where}: initializer {name!r} has no name or appears twice")
            constants[name] = to_array(tensor, self.folder, self.budget, f"initializer {name!r}")
        inputs = [_port(i, "input") for i in proto.input if _text(i.name) not in constants]
        known = set(constants)
        for port in inputs:
            if not port.name or port.name in known:
                raise ModelError(f"{where}: input {port.name!r} has no name or appears twice")
            known.add(port.name)
        nodes: list[Node] = []
        captures: dict[str, None] = {}
        produced = {_text(o) for n in proto.node for o in n.output if o}
        for position, raw in enumerate(proto.node):
            node = self.node(raw, position, _Scope(known, outer), depth)
            for name in node.uses:
                if name in known:
                    continue
                if name not in outer:
                    raise ModelError(f"{node}: input {name!r} {_why_missing(name, produced)}")
                captures[name] = None
            for name in filter(None, node.outputs):
                if name in known or name in outer:
                    raise ModelError(f"{node}: value {name!r} is defined twice")
                known.add(name)
            if node.op == "Constant":
                constants[node.outputs[0]] = self.constant(node)
            else:
                nodes.append(node)
        outputs = [_port(o, "output") for o in proto.output]
        if not outputs:
            raise ModelError(f"{where}: no outputs")
        for port in outputs:
            if port.name not in known:
                if port.name not in outer:
                    raise ModelError(f"{where}: output {port.name!r} is produced by no node")
                captures[port.name] = None
        return Graph(proto.name, nodes, inputs, outputs, constants, tuple(captures))

    def node(self, raw: onnx.NodeProto, position: int, visible: _Scope, depth: int) -> Node:
        inputs, outputs = ([_text(name) for name in names] for names in (raw.input, raw.output))
        node = Node(_text(raw.op_type), _text(raw.name) or f"#{position}", inputs, outputs)
        if raw.domain not in DOMAINS:
            raise ModelError(f"{node}: operators of the domain {raw.domain!r} are not supported")
        schema = _schema(node.op, self.opset)
        if schema is None:
            raise ModelError(f"{node}: ONNX has no operator {node.op!r} in opset {self.opset}")
        oldest = _schema(node.op, max(_OLDEST, self.opset))
        if oldest is None or oldest.since_version != schema.since_version:
            raise ModelError(f"{node}: {node.op} of opset {self.opset} is not supported, only of {_OLDEST} and later")
        _check_arity(node, schema)
        node.version = schema.since_version
        for attribute in raw.attribute:
            node.attrs[attribute.name] = self.attribute(attribute, schema, node, visible, depth)
        for name, declared in schema.attributes.items():
            if name not in node.attrs:
                if declared.required:
                    raise ModelError(f"{node}: attribute {name!r} is required")
                if declared.default_value.type:
                    node.attrs[name] = _plain(declared.default_value)
        return node

    def attribute(self, raw: onnx.AttributeProto, schema: Any, node: Node, visible: _Scope, depth: int) -> Any:
        if raw.name not in schema.attributes or raw.name in node.attrs:
            raise ModelError(f"{node}: attribute {raw.name!r} is unknown in opset {self.opset}, or given twice")
        declared = schema.attributes[raw.name].type.name
        if raw.ref_attr_name or raw.type not in _READERS:
            raise ModelError(f"{node}: attribute {raw.name!r} is of a kind that is not supported")
        if AttributeProto.AttributeType.Name(raw.type) != declared:
            given = AttributeProto.AttributeType.Name(raw.type)
            raise ModelError(f"{node}: attribute {raw.name!r} must be {declared}, not {given}")
        if raw.type == AttributeProto.TENSOR:
            return to_array(raw.t, self.folder, self.budget, f"{node}: attribute {raw.name!r}")
        if raw.type == AttributeProto.GRAPH:
            return self.graph(raw.g, visible, depth + 1)
        return _plain(raw)

    def constant(self, node: Node) -> Host:
        """The value of a Constant node, whichever attribute holds it."""
        values = {k: v for k, v in node.attrs.items() if k.startswith("value")}
        if len(values) != 1:
            raise ModelError(f"{node}: needs exactly one value attribute, got {sorted(node.attrs)}")
        ((name, value),) = values.items()
        if name == "value":
            return np.asarray(value)
        if "string" in name:
            raise ModelError(f"{node}: string constants are not supported")
        return np.asarray(value, np.float32 if "float" in name else np.int64)


def _why_missing(name: str, produced: set[str]) -> str:
    if name in produced:
        return "is produced only by a later node (nodes must be in topological order)"
    return "is neither a model input, nor an initializer, nor produced by any node"


def _text(value: str | bytes) -> str:
    """A name from the file: protobuf hands out bytes where they are not UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


_READERS = {
    AttributeProto.FLOAT: lambda a: a.f,
    AttributeProto.INT: lambda a: a.i,
    AttributeProto.STRING: lambda a: _text(a.s),
    AttributeProto.FLOATS: lambda a: list(a.floats),
    AttributeProto.INTS: lambda a: list(a.ints),
    AttributeProto.STRINGS: lambda a: [_text(s) for s in a.strings],
    AttributeProto.TENSOR: None,
    AttributeProto.GRAPH: None,
}


def _plain(raw: onnx.AttributeProto) -> Any:
    reader = _READERS[raw.type]
    return reader(raw) if reader else None


def _check_arity(node: Node, schema: Any) -> None:
    for kind, names, low, high in (
        ("inputs", node.inputs, schema.min_input, schema.max_input),
        ("outputs", node.outputs, schema.min_output, schema.max_output),
    ):
        if not low <= len(names) <= high:
            span = str(low) if low == high else f"{low} to {high}"
            raise ModelError(f"{node}: takes {span} {kind} in opset {schema.since_version}, got {len(names)}")
    for position, name in enumerate(node.inputs):
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        if not name and formal.option == onnx.defs.OpSchema.FormalParameterOption.Single:
            raise ModelError(f"{node}: required input {formal.name!r} is missing")


def _port(info: onnx.ValueInfoProto, kind: str) -> Port:
    if info.HasField("type") and not info.type.HasField("tensor_type"):
        raise ModelError(f"{kind} {info.name!r}: only tensors are supported, not {info.type.WhichOneof('value')}")
    tensor, name = info.type.tensor_type, _text(info.name)
    dtype = dtype_of(tensor.elem_type, f"{kind} {name!r}") if tensor.elem_type else None
    # A size of 0 is how old exporters spell an unknown one.
    shape = tuple((d.dim_value if d.HasField("dim_value") else _text(d.dim_param)) or None for d in tensor.shape.dim)
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise ModelError(f"{kind} {name!r}: negative size in shape {shape}")
    return Port(name, dtype, shape if tensor.HasField("shape") else None)
