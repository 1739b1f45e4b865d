"""Recording a plan: the graph is run once, node by node, and every step is written down.

While it records, the planner knows for every value whether it is the same in every run (*static*: constants, and
everything computed from shapes, which therefore never costs anything again), whether at least its shape is (*stable*:
then it gets a buffer for good, inside a border of zeros if the next layer is a padded convolution), and which buffers
its memory may belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from . import layout
from .blocks import Block, find
from .buffers import Buffer, Pads, Pool
from .device import location, namespace
from .errors import EXPECTED, NodeError
from .ir import Array, Graph, Node, Port
from .ops import OPS, Call, Op
from .ops.conv import Window
from .plan import Plan, Step

Memos = dict[Any, dict[Any, Any]]  # what each node keeps from plan to plan: packed layers, tables


@dataclass
class Value:
    """A value while a plan is recorded.

    Attributes:
        slot: where it is in the plan; 0 for one that no step has read yet (static values).
        array: what it is in this run.
        last: whether it is channels last.
        origin: buffers that its memory may belong to.
        foreign: whether its memory may belong to the caller or to the model.
        buffer: the padded buffer around it, or None.
        fixed: whether it is the very same array in every run.
        raw: whether it is an input that still has to be rounded to the type that the graph computes in.
    """

    array: Array
    slot: int = 0
    last: bool = False
    static: bool = False
    stable: bool = True
    origin: frozenset[Buffer] = frozenset()
    foreign: bool = False
    buffer: Buffer | None = None
    fixed: bool = False
    raw: bool = False


class Planner:
    """Runs a graph once, node by node, and records the steps.

    Args:
        inputs: array by name, captures included.
        memos: shared by the plans of a graph.
        device: where convolutions are computed; None follows the arrays.
        executor: makes a function from a graph and a device; for branches that are decided in every run.
        dtype: what float32 inputs are rounded to, None for nothing (see ``narrow``).
    """

    def __init__(
        self,
        inputs: dict[str, Array],
        memos: Memos,
        device: str | None,
        executor: Callable[[Graph, str | None], Callable[[list[Array]], list[Array]]],
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        self.dtype = dtype
        self.memos = memos
        self.device = device
        self.executor = executor
        self.locations = tuple({location(a) for a in inputs.values()})
        self.plan = Plan()
        self.pool = Pool()
        self.values: dict[str, Value] = {}
        self.converted: dict[str, dict[Any, Value]] = {}  # by name, then by layout, rank and namespace
        self.kept: set[str] = set()
        self.consumers: dict[str, list[Node]] = {}
        for name, array in inputs.items():
            slot = self.plan.slot()
            self.plan.inputs.append(slot)
            raw = dtype is not None and array.dtype == np.float32
            self.values[name] = Value(array, slot, foreign=True, raw=raw)

    def record(self, graph: Graph) -> tuple[Plan, list[Array]]:
        """The plan, and the outputs of this run."""
        self.trace(graph)
        outputs = [self.output(port) for port in graph.outputs]
        self.plan.outputs = [value.slot for value in outputs]
        results = [value.array for value in outputs]
        self.pool.arrange()
        self.plan.nbytes, self.plan.live = self.pool.nbytes, self.pool.live
        return self.plan, results

    def trace(self, graph: Graph) -> None:
        """Run the nodes of a graph whose inputs and captures are known."""
        for name, array in graph.constants.items():
            self.values[name] = Value(array, static=True, foreign=True)
        self.kept.update(port.name for port in graph.outputs)
        outer, self.consumers = self.consumers, graph.consumers()
        blocks, done = self.blocks(graph), set[int]()
        for node, dying in zip(graph.nodes, graph.dying(), strict=True):
            try:
                block = blocks.get(id(node)) if id(node) not in done else None
                if block and self.node(block.node):
                    done.update(map(id, block.members))
                if id(node) not in done:
                    self.node(node)
            except EXPECTED as error:
                inputs = ", ".join(self.describe(name) for name in node.inputs if name)
                raise NodeError.wrap(node, error, f" [inputs: {inputs}]") from error
            for name in dying:
                if name in self.values:  # what lies within a block has no value
                    self.release(name)
        self.consumers = outer

    def blocks(self, graph: Graph) -> dict[int, Block]:
        """The convolutions that one kernel may compute together, by the first of them."""
        key = find, id(graph)
        if key not in self.memos:
            self.memos[key] = find(graph)
        return self.memos[key]

    def describe(self, name: str) -> str:
        value = self.values[name]
        shape = value.array.shape
        return f"{name!r} {shape if not value.last else (shape[0], shape[-1], *shape[1:-1])} {value.array.dtype}"

    def release(self, name: str) -> None:
        """Nobody reads this value any more."""
        dead = [self.values.pop(name), *self.converted.pop(name, {}).values()]
        slots = tuple(v.slot for v in dead if v.slot and not v.static)
        for value in dead:
            self.pool.drop(value.origin)
        if self.plan.steps:
            self.plan.steps[-1].drops += slots

    def node(self, node: Node) -> bool:
        """Run and record a node; False and nothing done for one that stands for several and is no better than they."""
        row = OPS[node.op]
        names = [*node.inputs, *(dict.fromkeys(c for g in node.graphs for c in g.captures))]
        values = [self.values[n] if n else None for n in names]
        present = [v for v in values if v is not None]
        if node.op == "If" and present[0].static:
            self.inline(node, bool(present[0].array))
            return True
        modules = [namespace(v.array) for i, v in enumerate(values) if v and i not in row.host]
        xp = next((module for module in modules if module is not np), np)  # the host's arrays go to the device's
        call = Call(node, xp, self.device, memo=self.memos.setdefault((id(node), xp.__name__, self.locations), {}))
        if all(v.static for v in present) or (row.shape_only and all(v.stable for v in present)):
            self.compute(node, row, call, values)
            return True
        ranks, lasts = [v.array.ndim if v else None for v in values], [bool(v and v.last) for v in values]
        call.last, rank, targets = layout.wanted(row, node, ranks, lasts)
        operands = [
            self.operand(n, v, t, rank if t else 0, None if i in row.host else xp)
            for i, (n, v, t) in enumerate(zip(names, values, targets, strict=True))
        ]
        if row.pays and not row.pays(call, *[v.array for v in operands]):
            return False
        self.run(node, row, call, operands)
        return True

    def inline(self, node: Node, condition: bool) -> None:
        """The branch of an If whose condition follows from constants and shapes."""
        branch = node.attrs["then_branch" if condition else "else_branch"]
        self.trace(branch)
        results = [self.values[port.name] for port in branch.outputs]
        for name in (*branch.constants, *branch.producers()):  # names end with their graph
            self.values.pop(name, None)
            self.converted.pop(name, None)
            self.kept.discard(name)
        for name, value in zip(node.outputs, results, strict=True):
            self.pool.hold(value.origin)
            if name:
                self.values[name] = value

    def compute(self, node: Node, row: Op, call: Call, values: list[Value | None]) -> None:
        """A node whose results are the same in every run: they become constants of the plan."""
        call.last = bool(values and values[0] and values[0].last and row.shape_only)
        call.branches = self.branches(node)
        results = row.run(call, *[v and v.array for v in values])
        for name, array in zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=False):
            if name:
                self.values[name] = Value(np.asarray(array), static=True)

    def branches(self, node: Node) -> dict[str, Any]:
        """Functions from all captures of a control node to the outputs of each subgraph."""
        order = list(dict.fromkeys(c for g in node.graphs for c in g.captures))
        runs = {}
        for key, graph in node.attrs.items():
            if isinstance(graph, Graph):
                run = self.executor(graph, self.device)
                places = [order.index(c) for c in graph.captures]
                runs[key] = lambda *captured, _run=run, _at=places: _run([captured[i] for i in _at])
        return runs

    def operand(self, name: str, value: Value | None, last: bool | None, rank: int, xp: ModuleType | None) -> Value:
        """A value in the wanted layout and namespace (None: wherever it is); converted once however many read it."""
        if value is None:
            return Value(None, static=True)
        move = xp is not None and namespace(value.array) is not xp
        known = self.converted.setdefault(name, {})
        widen = bool(last) and 0 < value.array.ndim < rank
        narrow = value.raw and xp is not None
        if not (move or widen or narrow) and (last is None or last == value.last or value.array.ndim < 3):
            return self.placed(value)
        key = last, rank if widen else 0, xp if move else None, narrow
        if key not in known:
            if widen and value.last:
                value = self.operand(name, value, False, 0, xp)
            if move:
                value = self.convert(Node("Upload", name, [name], [name]), _upload, xp, value, False)
            dtype = {"dtype": self.dtype} if narrow else {}
            if narrow and (widen or not last or value.array.ndim < 3):
                value = self.convert(Node("Round", name, [name], [name], dtype), _rounded, xp, value, False)
            if widen:
                node = Node("Align", name, [name], [name], {"rank": rank})
                value = self.convert(node, layout.widened, xp, value, True, views=True)
            elif last is False and value.last:
                value = self.convert(Node("ChannelsFirst", name, [name], [name]), layout.viewed, xp, value, False, True)
            elif last and not value.last and value.array.ndim >= 3:
                value = self.convert(Node("ChannelsLast", name, [name], [name], dtype), layout.moved, xp, value, True)
            known[key] = value
        return self.placed(known[key])

    def placed(self, value: Value) -> Value:
        """A static value gets a slot when a step first reads it."""
        if value.static and not value.slot and value.array is not None:
            value.slot = self.plan.slot(value.array)
        return value

    def convert(
        self, node: Node, run: Any, xp: ModuleType | None, value: Value, last: bool, views: bool = False
    ) -> Value:
        """One step between layouts or namespaces, done now and for good if the value is static."""
        call = Call(node, xp or namespace(value.array), self.device)
        if value.static:
            # what belongs to the model is moved to a device once, whatever the number of plans
            kept = self.memos.setdefault((run, self.locations), {}) if value.foreign and run is _upload else {}
            if id(value.array) not in kept:
                kept[id(value.array)] = run(call, value.array)
            return Value(kept[id(value.array)], last=last, static=True)
        array = run(call, value.array)
        origin, foreign = (value.origin, value.foreign) if views else (frozenset[Buffer](), False)
        new = Value(array, self.plan.slot(), last, stable=value.stable, origin=origin, foreign=foreign)
        if run in (layout.moved, _rounded) and value.stable:
            self.place(node.inputs[0], new, call)
        self.pool.hold(new.origin)
        self.plan.steps.append(Step(run, call, (value.slot,), (new.slot,), capturable=run is not _upload))
        return new

    def run(self, node: Node, row: Op, call: Call, operands: list[Value]) -> None:
        """Run and record one node."""
        slots = [v.slot for v in operands]
        arrays = [v.array for v in operands]
        if node.op in ("Conv", "Gemm", "MatMul"):
            call.constant_filter = all(v.static for v in operands[1:3])
            if node.op == "Conv" and operands[0].buffer is not None:
                call.padded, arrays[0] = True, operands[0].buffer.whole
                slots[0] = self.plan.slot(arrays[0])
        call.branches = self.branches(node)
        stable = not row.data_dependent and all(
            v.stable and (v.static or i not in row.host) for i, v in enumerate(operands)
        )
        results = row.run(call, *arrays)
        results = results if isinstance(results, tuple) else (results,)
        origin = frozenset[Buffer]().union(*(v.origin for v in operands)) if row.views else frozenset[Buffer]()
        foreign = row.views and any(v.foreign for v in operands)
        last = call.last and row.layout(node) != "any"
        made = []
        for name, array in zip([*node.outputs, *[""] * len(results)], results, strict=False):
            value = Value(array, self.plan.slot(), last and array.ndim >= 3, False, stable, origin, foreign)
            if row.out and stable and name not in self.kept and array.ndim:
                self.place(name, value, call)
            self.pool.hold(value.origin)
            made.append(value.slot)
            if name:
                self.values[name] = value
        bindable = node.op == "InvertedResidual" or (node.op == "Conv" and call.constant_filter)
        call.fixed = bindable and call.out is not None and all(v.static or v.fixed for v in operands)
        capturable = stable and not call.branches
        self.plan.steps.append(Step(row.run, call, tuple(slots), tuple(made), capturable=capturable))

    def place(self, name: str, value: Value, call: Call) -> None:
        """Give a value a buffer of its own, padded for the convolutions that read it, and let its step write there."""
        array = value.array
        pads = ((0, 0),) * array.ndim
        on_cpu = call.xp is np and self.device in (None, "cpu")  # elsewhere padding costs a kernel nothing
        around = self.padding(name, array.shape[1:-1]) if value.last and on_cpu else None
        buffer = self.pool.take(call.xp, array.shape, ((0, 0), *around, (0, 0)) if around else pads, array.dtype)
        buffer.array[...] = array
        call.out = value.array = buffer.array
        buffer.call = call
        value.origin = frozenset((buffer,))
        value.buffer = buffer if around else None
        value.fixed = True

    def padding(self, name: str, spatial: tuple[int, ...]) -> Pads | None:
        """The padding that all readers of a value want, if they are convolutions that agree on one."""
        agreed: set[Pads] = set()
        for node in self.consumers.get(name, ()):
            if node.op != "Conv" or name in node.inputs[1:3]:
                return None
            if node.inputs[0] == name:
                filter_ = self.values[node.inputs[1]]
                if not filter_.static or filter_.array.ndim != len(spatial) + 2:
                    return None
                if not np.isfinite(filter_.array).all():  # padding contributes nothing, but 0 * inf would
                    return None
                agreed.add(Window.of(node, filter_.array.shape[2:]).pads(spatial))
        pads = agreed.pop() if len(agreed) == 1 else ()
        return pads if any(map(any, pads)) and min(map(min, pads)) >= 0 else None

    def output(self, port: Port) -> Value:
        """A graph output: ONNX's order, the declared type, and memory that belongs to the caller alone."""
        name = port.name
        value = self.operand(name, self.values[name], False, 0, None)
        narrow = self.dtype is not None and value.array.dtype == self.dtype != port.dtype
        owned = not (value.origin or value.foreign or value.static) and value.array.flags.c_contiguous
        if owned and not narrow:
            return value
        node = Node("Output", name, [name], [name], {"dtype": np.dtype(np.float32)} if narrow else {})
        call = Call(node, namespace(value.array))
        new = Value(_copied(call, value.array), self.plan.slot())
        self.plan.steps.append(Step(_copied, call, (value.slot,), (new.slot,)))
        return new


def _upload(call: Call, x: Array) -> Array:
    return call.xp.asarray(x)


def _rounded(call: Call, x: Array) -> Array:
    if call.out is None:
        return x.astype(call.attrs["dtype"])
    call.out[...] = x
    return call.out


def _copied(call: Call, x: Array) -> Array:
    return call.xp.array(x, dtype=call.attrs.get("dtype"), order="C", copy=True)
