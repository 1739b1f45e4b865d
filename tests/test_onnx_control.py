"""Dynamic shapes and decisions: what is known when a plan is made costs nothing, what is not is never remembered."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gpu_conv.onnx import load

from .graph_models import Builder, assert_agrees, model_of, normal, steps


def test_dynamic_shapes() -> None:
    """A detector's head: the reshape follows the input's shape, computed in the graph, and costs no step."""
    b = Builder()
    x = b.node("Conv", "x", b.weight(8, 3, 3, 3), b.weight(8), pads=[1] * 4, strides=[2, 2])
    shape = b.node("Shape", x)
    batch = b.node("Gather", shape, b.constant(np.array([0])))
    rows = b.node(
        "Div",
        b.node("Mul", b.node("Gather", shape, b.constant(np.array([2]))), b.constant(np.array([2]))),
        b.constant(np.array([2])),
    )
    columns = b.node("Cast", b.node("Cast", b.node("Gather", shape, b.constant(np.array([3]))), to=1), to=7)
    target = b.node("Concat", batch, b.node("Mul", rows, columns), b.constant(np.array([4, -1])), axis=0)
    boxes = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 3, 1]), target)
    y = b.node("Softmax", boxes, axis=-1)
    model = b.model({"x": (np.float32, ["n", 3, "h", "w"])}, y)
    runner = load(model)
    for shape_ in ((1, 3, 16, 16), (2, 3, 9, 22), (3, 3, 16, 16)):
        x_ = normal(*shape_)
        assert_agrees(runner, model, {"x": x_}, 1e-5)
        # the transpose back from channels last is the identity in memory
        assert steps(runner, x_) == {"ChannelsLast": 1, "Conv": 1, "Transpose": 1, "Reshape": 1, "Softmax": 1}
    for size in range(4, 24):  # more shapes than plans are kept
        assert_agrees(runner, model, {"x": normal(1, 3, size, size + 1)}, 1e-5)


def branch(name: str, nodes: list[Any], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def choice(condition: str) -> list[onnx.NodeProto]:
    """A decision between a convolution of a captured value and a reshape, with a decision inside."""
    yes = [
        helper.make_node("Conv", ["scaled", "w"], ["c"], pads=[1] * 4),
        helper.make_node(
            "If",
            ["inner"],
            ["yes"],
            then_branch=branch("t", [helper.make_node("Relu", ["c"], ["r"])], "r"),
            else_branch=branch("e", [helper.make_node("Tanh", ["scaled"], ["h"])], "h"),
        ),
    ]
    no = branch("no", [helper.make_node("Identity", ["scaled"], ["no"])], "no")
    return [
        helper.make_node("Mul", ["x", "two"], ["scaled"]),
        helper.make_node("If", [condition], ["chosen"], then_branch=branch("y", yes, "yes"), else_branch=no),
        helper.make_node("Relu", ["chosen"], ["y"]),
    ]


CHOICE = {"w": normal(6, 6, 3, 3), "two": np.float32(2)}


def test_if_on_values() -> None:
    ports = {"x": (np.float32, ["n", 6, 5, 5]), "flag": (np.bool_, []), "inner": (np.bool_, [])}
    model = model_of(choice("flag"), ports, ["y"], CHOICE)
    runner = load(model)
    for flag in (True, False, True):
        for inner in (True, False):
            feeds = {"x": normal(1, 6, 5, 5), "flag": np.array(flag), "inner": np.array(inner)}
            assert_agrees(runner, model, feeds, 1e-6)


def test_if_on_shapes_costs_nothing() -> None:
    """``if x.shape[2] == 5``: decided when the plan is made, the branch planned with the rest."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["size"]),
        helper.make_node("Equal", ["size", "five"], ["flag"]),
        *choice("flag"),
    ]
    constants = {**CHOICE, "axis": np.array(2), "five": np.array(5), "inner": np.array(True)}
    model = model_of(nodes, {"x": (np.float32, ["n", 6, "h", "w"])}, ["y"], constants)
    runner = load(model)
    for size in (5, 7, 5):
        assert_agrees(runner, model, {"x": normal(1, 6, size, size)}, 1e-6)
    assert "If" not in steps(runner, normal(1, 6, 5, 5))
    assert steps(runner, normal(1, 6, 7, 7)) == {"Mul": 1, "Identity": 1, "Relu": 1}


@pytest.mark.parametrize("flag", [True, False])
def test_if_on_constants_is_decided_at_load(flag: bool) -> None:
    constants = {**CHOICE, "flag": np.array(flag), "inner": np.array(False)}
    model = model_of(choice("flag"), {"x": (np.float32, ["n", 6, 5, 5])}, ["y"], constants)
    runner = load(model)
    assert_agrees(runner, model, {"x": normal(2, 6, 5, 5)}, 1e-6)
    assert "If" not in {n.op for n in runner.graph.nodes}


def test_shapes_that_depend_on_values() -> None:
    """Slices and reshapes whose sizes are inputs: nothing may be remembered from another call."""
    b = Builder()
    part = b.node("Slice", "x", "start", "end", b.constant(np.array([2])))
    x = b.node("Relu", b.node("Conv", part, b.weight(6, 6, 3, 3), pads=[1] * 4))
    y = b.node("Reshape", b.node("Conv", x, b.weight(4, 6, 3, 3), pads=[1] * 4), "shape")
    ports = {
        "x": (np.float32, [1, 6, 12, 5]),
        "start": (np.int64, [1]),
        "end": (np.int64, [1]),
        "shape": (np.int64, [2]),
    }
    model = b.model(ports, y)
    runner = load(model)
    x_ = normal(1, 6, 12, 5)
    for start, end in ((0, 12), (3, 7), (0, 12), (5, 6)):
        feeds = {"x": x_, "start": np.array([start]), "end": np.array([end]), "shape": np.array([-1, 5])}
        assert_agrees(runner, model, feeds, 1e-5)


def test_branches_may_use_the_same_names() -> None:
    """Two decisions whose branches call their own values alike, with other shapes and layouts."""

    def chosen(x: str, op: str, output: str, **attributes: Any) -> onnx.GraphProto:
        inner = [helper.make_node(op, [x, *(["w"] if op == "Conv" else [])], ["t"], **attributes)]
        return branch(op, [*inner, helper.make_node("Relu", ["t"], [output])], output)

    pool = {"kernel_shape": [2, 2]}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["size"]),
        helper.make_node("Equal", ["size", "five"], ["flag"]),
        helper.make_node(
            "If", ["flag"], ["a"], then_branch=chosen("x", "Conv", "u"), else_branch=chosen("x", "Tanh", "u")
        ),
        helper.make_node(
            "If",
            ["flag"],
            ["b"],
            then_branch=chosen("a", "MaxPool", "u", **pool),
            else_branch=chosen("a", "Sigmoid", "u"),
        ),
        helper.make_node("MaxPool", ["b"], ["t"], kernel_shape=[2, 1]),
        helper.make_node("Transpose", ["t"], ["y"]),
    ]
    constants = {"w": normal(4, 6, 1, 1), "axis": np.array(2), "five": np.array(5)}
    model = model_of(nodes, {"x": (np.float32, ["n", 6, "h", "w_"])}, ["y"], constants)
    runner = load(model)
    for size in (5, 7, 5):
        assert_agrees(runner, model, {"x": normal(2, 6, size, size)}, 1e-6)
