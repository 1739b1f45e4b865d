"""Whole networks on the ONNX runner against onnxruntime, and what the runner makes of their graphs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpu_conv
from gpu_conv.onnx import Model, ModelError, load

from . import graph_models as gm
from .graph_models import Builder, expected, model_of, normal

TOLERANCE = 2e-4  # of max|y|, over a whole network
DATA = Path(onnx.__file__).parent / "backend/test/data"


def steps(runner: Model, inputs: Any) -> Counter[str]:
    """How often each operator runs, layout changes included."""
    return Counter(r.op.partition("+")[0] for r in runner.profile(inputs, repeat=1))


def assert_agrees(runner: Model, model: onnx.ModelProto, feeds: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    """Both the planned and the replayed run."""
    wanted = expected(model, feeds)
    before = {name: a.copy() for name, a in feeds.items()}
    for _ in range(2):
        found = runner(feeds)
        assert list(found) == list(wanted)
        for name, array in wanted.items():
            assert found[name].shape == array.shape
            assert found[name].dtype == array.dtype
            assert np.isfinite(array).all()
            np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * np.abs(array).max())
    for name, array in before.items():
        np.testing.assert_array_equal(feeds[name], array, err_msg="an input was written to")


BORDERS = {"ChannelsLast": 1, "GlobalAveragePool": 1, "ChannelsFirst": 1, "Flatten": 1, "Gemm": 1}


@pytest.mark.parametrize("bn", [True, False], ids=["bn", "folded"])
@pytest.mark.parametrize(
    ("stages", "same", "convolutions"),
    [(gm.MOBILENET_V2, False, 52), (gm.EFFICIENTNET_LITE0, True, 49)],
    ids=["mobilenet_v2", "efficientnet_lite0"],
)
def test_inverted_residual_networks(stages: Any, same: bool, convolutions: int, bn: bool) -> None:
    model = gm.inverted_residuals(stages, size=96, bn=bn, same=same)
    runner = load(model)
    for batch in (1, 3):
        assert_agrees(runner, model, {"x": normal(batch, 3, 96, 96, seed=batch)}, 1e-5)
    # everything is fused into the convolutions, and nothing is transposed between them
    assert steps(runner, normal(1, 3, 96, 96)) == {"Conv": convolutions, **BORDERS}


@pytest.mark.parametrize("path", gm.light_models(), ids=lambda p: p.stem)
def test_light_models(path: Path) -> None:
    model, feeds = gm.with_random_weights(path)
    runner = load(model)
    assert_agrees(runner, model, feeds)
    # everything is fused; what needs ONNX's order of axes comes after the pixels are gone
    assert not {"Transpose", "Mul", "Add", "Sum", "BatchNormalization"} & {n.op for n in runner.graph.nodes}
    assert sum(n.op == "Reshape" for n in runner.graph.nodes) <= 1


def test_there_are_light_models() -> None:
    assert len(gm.light_models()) == 9


CONVOLUTIONS = sorted((DATA / "pytorch-converted").glob("test_Conv*"))


@pytest.mark.parametrize("folder", CONVOLUTIONS, ids=lambda p: p.name)
def test_exported_convolutions(folder: Path) -> None:
    runner = load(folder / "model.onnx")
    for data in sorted(folder.glob("test_data_set_*")):
        x, y = (numpy_helper.to_array(onnx.load_tensor(data / f"{name}_0.pb")) for name in ("input", "output"))
        for _ in range(2):
            (found,) = runner(x).values()
            np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


def test_there_are_exported_convolutions() -> None:
    assert len(CONVOLUTIONS) == 28


# Fusion: each network says which steps may remain.


def check_fusion(b: Builder, y: str | list[str], expect: dict[str, int], shape: tuple[int, ...] = (2, 6, 9, 8)) -> Any:
    outputs = [y] if isinstance(y, str) else y
    model = b.model({"x": (np.float32, ["n", *shape[1:]])}, *outputs)
    runner = load(model)
    x = normal(*shape)
    assert_agrees(runner, model, {"x": x}, 5e-6)
    counts = steps(runner, x)
    for border in ("ChannelsLast", "ChannelsFirst", "Output"):
        counts.pop(border, None)
    assert counts == expect
    return runner


CHANNEL = (6, 1, 1)

ACTIVATIONS: dict[str, Any] = {
    "relu": lambda b, x: b.node("Relu", x),
    "relu6": lambda b, x: b.node("Clip", x, b.constant(np.float32(0)), b.constant(np.float32(6))),
    "clip": lambda b, x: b.node("Clip", x, b.constant(np.float32(-0.5)), b.constant(np.float32(0.25))),
    "only_min": lambda b, x: b.node("Clip", x, b.constant(np.float32(-0.5))),
    "sigmoid": lambda b, x: b.node("Sigmoid", x),
    "tanh": lambda b, x: b.node("Tanh", x),
    "elu": lambda b, x: b.node("Elu", x, alpha=0.5),
    "softplus": lambda b, x: b.node("Softplus", x),
    "leaky_relu": lambda b, x: b.node("LeakyRelu", x, alpha=0.2),
    "hard_sigmoid": lambda b, x: b.node("HardSigmoid", x, alpha=1 / 6),
    "hard_swish": lambda b, x: b.node("HardSwish", x),
    "silu": lambda b, x: b.node("Mul", b.node("Sigmoid", x), x),
    "hard_swish_of_sigmoid": lambda b, x: b.node("Mul", x, b.node("HardSigmoid", x, alpha=1 / 6)),
    "hard_swish_divided": lambda b, x: b.node("Div", b.node("Mul", x, six(b, x)), b.constant(np.float32(6))),
    "hard_swish_inner": lambda b, x: b.node("Mul", x, b.node("Div", six(b, x), b.constant(np.float32(6)))),
    "hard_swish_scaled": lambda b, x: b.node("Mul", b.node("Mul", six(b, x), x), b.constant(np.float32(1 / 6))),
    "gelu": lambda b, x: b.node("Mul", b.node("Mul", x, erf1(b, x)), b.constant(np.float32(0.5))),
    "gelu_half_first": lambda b, x: b.node("Mul", b.node("Mul", x, b.constant(np.float32(0.5))), erf1(b, x)),
}


def six(b: Builder, x: str) -> str:
    shifted = b.node("Add", x, b.constant(np.float32(3)))
    return b.node("Clip", shifted, b.constant(np.float32(0)), b.constant(np.float32(6)))


def erf1(b: Builder, x: str) -> str:
    erf = b.node("Erf", b.node("Div", x, b.constant(np.float32(np.sqrt(2)))))
    return b.node("Add", erf, b.constant(np.float32(1)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_fuse(name: str) -> None:
    b = Builder()
    x = b.node("Conv", "x", b.weight(6, 6, 3, 3), b.weight(6), pads=[1] * 4)
    check_fusion(b, ACTIVATIONS[name](b, x), {"Conv": 1})


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_alone(name: str) -> None:
    b = Builder()
    (count,) = load_steps(b, ACTIVATIONS[name](b, "x")).values()
    assert count == 1


def load_steps(b: Builder, y: str) -> Counter[str]:
    model = b.model({"x": (np.float32, ["n", 6, 9, 8])}, y)
    runner = load(model)
    assert_agrees(runner, model, {"x": normal(2, 6, 9, 8)}, 5e-6)
    return steps(runner, normal(2, 6, 9, 8))


def test_almost_an_activation_is_left_alone() -> None:
    b = Builder()
    other = b.node("Relu", "x")
    gate = b.node("Mul", other, b.node("Sigmoid", "x"))  # not x * sigmoid(x)
    shifted = b.node("Clip", b.node("Add", gate, b.constant(np.float32(2))), b.constant(np.float32(0)))
    y = b.node("Mul", gate, b.node("Div", shifted, b.constant(np.float32(6))))
    model = b.model({"x": (np.float32, ["n", 6])}, y)
    assert_agrees(load(model), model, {"x": normal(4, 6)}, 1e-6)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_and_channel_constants_fold(op: str, groups: int, bias: bool) -> None:
    b = Builder()
    inputs = ["x", b.weight(6, 6 // groups, 3, 3), *([b.weight(6)] if bias else [])]
    x = b.node(op, *inputs, group=groups, pads=[1] * 4)
    numbers = [b.constant(np.abs(normal(6, seed=i)) + np.float32(0.5)) for i in range(4)]
    x = b.node("BatchNormalization", x, *numbers)
    x = b.node("Mul", x, b.weight(*CHANNEL))
    x = b.node("Add", b.weight(1, *CHANNEL), x)
    x = b.node("Sub", x, b.constant(np.float32(0.25)))
    x = b.node("Sub", b.weight(*CHANNEL), x)
    x = b.node("Div", x, b.constant(np.abs(normal(*CHANNEL)) + np.float32(1)))
    check_fusion(b, b.node("Relu", x), {op: 1})


def test_constants_that_vary_over_pixels_stay() -> None:
    b = Builder()
    x = b.node("Conv", "x", b.weight(6, 6, 1, 1))
    x = b.node("Add", x, b.weight(6, 9, 8))
    x = b.node("Mul", x, b.weight(8))
    y = b.node("Div", b.constant(np.float32(1)), b.node("Exp", x))
    check_fusion(b, y, {"Conv": 1, "Add": 1, "Mul": 1, "Exp": 1, "Div": 1})


def test_a_lone_batch_norm_becomes_one_step() -> None:
    b = Builder()
    x = b.node("MaxPool", "x", kernel_shape=[2, 2])
    x = b.node("BatchNormalization", x, *[b.constant(np.abs(normal(6, seed=i)) + np.float32(0.1)) for i in range(4)])
    x = b.node("Add", b.node("Mul", x, b.weight(*CHANNEL)), b.weight(*CHANNEL))
    check_fusion(b, b.node("Relu", x), {"MaxPool": 1, "Affine": 1})


@pytest.mark.parametrize("first", [True, False], ids=["conv first", "conv second"])
@pytest.mark.parametrize("op", ["Add", "Sum"])
def test_residual_fuses(op: str, first: bool) -> None:
    b = Builder()
    y = b.node("Conv", "x", b.weight(6, 6, 3, 3), b.weight(6), pads=[1] * 4)
    x = b.node("Relu", b.node(op, *((y, "x") if first else ("x", y))))
    check_fusion(b, x, {"Conv": 1})


def test_residual_of_two_convolutions_goes_to_the_later_one() -> None:
    b = Builder()
    left = b.node("Conv", "x", b.weight(6, 6, 3, 3), pads=[1] * 4)
    right = b.node("Conv", "x", b.weight(6, 6, 1, 1))
    runner = check_fusion(b, b.node("Add", left, right), {"Conv": 2})
    assert [r.op for r in runner.profile(normal(1, 6, 9, 8), 1) if "Conv" in r.op] == ["Conv", "Conv+add"]


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 6, 9, 8), (1, 6, 1, 1), (3, 2, 6, 9, 8)], ids=str)
def test_residual_of_another_shape(shape: tuple[int, ...]) -> None:
    """Fusion is decided before shapes are known: broadcasting must survive it, whichever side is larger."""
    b = Builder()
    pooled = b.node("GlobalAveragePool", "x")
    y = b.node("Conv", pooled, b.weight(6, 6, 1, 1))
    x = b.node("Relu", b.node("Add", y, "other"))
    shape = (2, *shape[1:]) if len(shape) < 5 else shape
    shape = (6, *shape[1:]) if len(shape) == 3 else shape
    ports = {"x": (np.float32, [2, 6, 9, 8]), "other": (np.float32, list(shape))}
    model = b.model(ports, x)
    assert_agrees(load(model), model, {"x": normal(2, 6, 9, 8), "other": normal(*shape)}, 1e-6)


def test_a_result_with_two_readers_is_not_fused_away() -> None:
    b = Builder()
    y = b.node("Conv", "x", b.weight(6, 6, 3, 3), pads=[1] * 4)
    relu, tanh = b.node("Relu", y), b.node("Tanh", y)
    check_fusion(b, [b.node("Add", relu, tanh), y], {"Conv": 1, "Relu": 1, "Tanh": 1, "Add": 1})
    b = Builder()
    y = b.node("Conv", "x", b.weight(6, 6, 3, 3), pads=[1] * 4)
    check_fusion(b, b.node("Add", y, y), {"Conv": 1, "Add": 1})


@pytest.mark.parametrize("opset", [10, 17])
def test_pad_fuses(opset: int) -> None:
    b = Builder(opset=opset)
    amounts = [0, 0, 1, 2, 0, 0, 0, 3]
    if opset < 11:
        x = b.node("Pad", "x", pads=amounts)
    else:
        x = b.node("Pad", "x", b.constant(np.array(amounts)), b.constant(np.float32(0)))
    check_fusion(b, b.node("Conv", x, b.weight(6, 1, 3, 3), group=6, pads=[1, 0, 1, 0], strides=[2, 2]), {"Conv": 1})


def test_pads_that_are_not_zeros_around_pixels_stay() -> None:
    b = Builder()
    w = b.weight(6, 6, 3, 3)
    value = b.node("Pad", "x", b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])), b.constant(np.float32(1)))
    batch = b.node("Pad", "x", b.constant(np.array([1, 0, 0, 0, 0, 0, 0, 0])))
    mirror = b.node("Pad", "x", b.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1])), mode="reflect")
    outputs = [b.node("Conv", p, w) for p in (value, batch, mirror)]
    check_fusion(b, outputs, {"Pad": 3, "Conv": 3})


def test_consumers_with_different_padding() -> None:
    """A value inside a border of zeros, read by a layer with another padding, by a pool, and as residual."""
    b = Builder()
    x = b.node("Conv", "x", b.weight(6, 6, 1, 1))
    wide = b.node("Conv", x, b.weight(6, 1, 5, 5), group=6, pads=[2] * 4)
    same = b.node("Conv", x, b.weight(6, 1, 3, 3), group=6, pads=[1] * 4)
    pool = b.node("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
    one = b.node("Conv", wide, b.weight(6, 6, 3, 3), pads=[1] * 4)
    residual = b.node("Add", b.node("Conv", one, b.weight(6, 6, 3, 3), pads=[1] * 4), one)
    outputs = [b.node("Concat", same, pool, residual, axis=1)]
    check_fusion(b, outputs, {"Conv": 5, "MaxPool": 1, "Concat": 1})


def test_buffers_are_reused_without_mixing_values() -> None:
    """Many layers of one geometry, values living across several of them, borders of zeros reused."""
    b = Builder()
    values = ["x"]
    for i in range(8):
        y = b.node("Conv", values[-1], b.weight(6, 1, 3, 3), group=6, pads=[1] * 4)
        y = b.node("Tanh", b.node("Add", y, values[max(0, i - 2)]))
        values.append(y)
    sliced = b.node("Slice", values[3], *(b.constant(np.array([v])) for v in (1, 5, 1)))  # a view that lives on
    late = b.node("Conv", b.node("Relu", values[-1]), b.weight(4, 6, 1, 1))
    model = b.model({"x": (np.float32, ["n", 6, 9, 8])}, b.node("Add", sliced, late), values[4])
    runner = load(model)
    first, second = normal(2, 6, 9, 8), normal(2, 6, 9, 8, seed=1)
    assert_agrees(runner, model, {"x": first}, 5e-6)
    kept = runner(first)
    copies = {name: a.copy() for name, a in kept.items()}
    assert_agrees(runner, model, {"x": second}, 5e-6)
    for name in kept:
        np.testing.assert_array_equal(kept[name], copies[name], err_msg="a later call wrote into a result")


def test_outputs_never_share_memory_with_inputs() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Reshape", ["x", "s"], ["b"])]
    runner = load(model_of(nodes, {"x": (np.float32, [2, 3])}, ["a", "b"], {"s": np.array([3, 2])}))
    x = normal(2, 3)
    for _ in range(2):
        for array in runner(x).values():
            assert not np.shares_memory(array, x)
            assert array.flags.c_contiguous


# Shapes, control flow, and the other kinds of model


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


def test_text_recognition() -> None:
    """Convolutions, nearest and linear resize, a transposed convolution, then a sequence into two LSTM directions."""
    b = Builder()
    x = b.conv_bn("x", (8, 3, 3, 3), act="hard_swish", pads=[1] * 4, strides=[2, 2])
    y = b.conv_bn(x, (8, 1, 3, 3), act="relu", pads=[1] * 4, strides=[2, 2], group=8)
    up = b.node(
        "Resize",
        y,
        "",
        b.constant(np.array([1, 1, 2, 2], np.float32)),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    down = b.node("ConvTranspose", y, b.weight(8, 8, 2, 2), b.weight(8), strides=[2, 2])
    gate = b.node("Sigmoid", b.node("Conv", b.node("GlobalAveragePool", x), b.weight(8, 8, 1, 1), b.weight(8)))
    x = b.node("Concat", b.node("Mul", x, gate), b.node("Add", up, down), axis=1)
    x = b.node("ReduceMean", x, axes=[2], keepdims=0)  # [n, 16, w]
    x = b.node("Transpose", x, perm=[2, 0, 1])
    weights = [b.weight(2, 20, 16, scale=0.3), b.weight(2, 20, 5, scale=0.3), b.weight(2, 40, scale=0.3)]
    x = b.node("LSTM", x, *weights, hidden_size=5, direction="bidirectional")
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3]), b.constant(np.array([0, 0, -1])))
    x = b.node("Add", b.node("MatMul", x, b.weight(10, 7)), b.weight(7))
    model = b.model({"x": (np.float32, ["n", 3, 16, "w"])}, b.node("LogSoftmax", x, axis=2))
    runner = load(model)
    for batch, width in ((1, 32), (2, 48), (1, 32)):
        assert_agrees(runner, model, {"x": normal(batch, 3, 16, width)}, 2e-5)


def voice_branch(prefix: str, kernel: int) -> onnx.GraphProto:
    """Convolutions and an LSTM inside a branch: its weights lie in the branch, its audio comes from outside."""
    b = Builder(seed=kernel)
    x = b.node("Pad", "audio", b.constant(np.array([0, 0, 4, 0, 0, 4])), mode="reflect")
    x = b.node("Conv", x, b.weight(6, 1, kernel), strides=[kernel // 2])
    x = b.node("Relu", b.node("Add", b.node("Conv", x, b.weight(6, 1, 3), group=6, pads=[1, 1]), x))
    x = b.node("Transpose", x, perm=[2, 0, 1])
    h, c = (
        b.node(
            "Squeeze",
            b.node("Slice", "state", *(b.constant(np.array([v])) for v in (i, i + 1))),
            b.constant(np.array([0])),
        )
        for i in (0, 1)
    )
    h, c = (b.node("Unsqueeze", s, b.constant(np.array([0]))) for s in (h, c))
    lstm = helper.make_node(
        "LSTM", [x, b.weight(1, 16, 6), b.weight(1, 16, 4), "", "", h, c], ["y", "yh", "yc"], hidden_size=4
    )
    b.nodes.append(lstm)
    probability = b.node("Sigmoid", b.node("ReduceMean", "y", axes=[0, 1, 3], keepdims=0))
    state = b.node("Concat", "yh", "yc", axis=0)
    rename = {n: f"{prefix}_{n}" for node in b.nodes for n in node.output} | {n: f"{prefix}_{n}" for n in b.constants}
    for node in b.nodes:
        for names in (node.input, node.output):
            names[:] = [rename.get(n, n) for n in names]
    initial = [numpy_helper.from_array(a, rename[n]) for n, a in b.constants.items()]
    outputs = [helper.make_tensor_value_info(rename[o], TensorProto.FLOAT, None) for o in (probability, state)]
    return helper.make_graph(b.nodes, prefix, [], outputs, initial)


def voice_activity() -> onnx.ModelProto:
    """As voice detectors are exported: the sampling rate, an input, chooses one of two networks."""
    equal = helper.make_node("Equal", ["rate", "sixteen"], ["is16"])
    branches = {"then_branch": voice_branch("wide", 8), "else_branch": voice_branch("narrow", 4)}
    choose = helper.make_node("If", ["is16"], ["probability", "next"], **branches)
    lift = helper.make_node("Unsqueeze", ["samples", "one"], ["audio"])
    inputs = {"samples": (np.float32, ["n", "t"]), "state": (np.float32, [2, "n", 4]), "rate": (np.int64, [])}
    constants = {"sixteen": np.array(16000), "one": np.array([1])}
    return model_of([lift, equal, choose], inputs, ["probability", "next"], constants)


def test_voice_activity() -> None:
    model = voice_activity()
    runner = load(model)
    for rate in (16000, 8000, 16000):
        state = np.zeros((2, 1, 4), np.float32)
        for chunk in range(3):
            feeds = {"samples": normal(1, 64, seed=chunk), "state": state, "rate": np.array(rate)}
            assert_agrees(runner, model, feeds, 1e-5)
            state = runner(feeds)["next"]


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


def test_channels_last_models() -> None:
    """TensorFlow's: the input is nhwc and transposed at once; in memory that is no transposition at all."""
    b = Builder()
    x = b.node("Transpose", "x", perm=[0, 3, 1, 2])
    x = b.node("Conv", x, b.weight(8, 6, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    x = b.node("Conv", x, b.weight(8, 1, 3, 3), auto_pad="SAME_UPPER", group=8)
    y = b.node("Transpose", x, perm=[0, 2, 3, 1])
    model = b.model({"x": (np.float32, ["n", 9, 8, 6])}, y)
    runner = load(model)
    assert_agrees(runner, model, {"x": normal(2, 9, 8, 6)}, 1e-5)


def test_one_dimensional_and_three_dimensional_networks() -> None:
    for rank, size in ((1, (40,)), (3, (6, 7, 8))):
        b = Builder()
        x = b.conv_bn("x", (8, 4, *(3,) * rank), act="relu", pads=[1] * 2 * rank, strides=[2] * rank)
        x = b.conv_bn(x, (8, 1, *(3,) * rank), act="silu", pads=[1] * 2 * rank, group=8)
        x = b.node("MaxPool", x, kernel_shape=[2] * rank)
        x = b.node("Add", b.conv_bn(x, (8, 8, *(1,) * rank), act=None), x)
        model = b.model({"x": (np.float32, ["n", 4, *size])}, b.node("Flatten", x))
        assert_agrees(load(model), model, {"x": normal(2, 4, *size)}, 1e-5)


def test_double_precision() -> None:
    """onnxruntime has no float64 convolution: compared with its float32 result."""
    single = gm.one_node("Conv", [normal(2, 6, 9, 8)], {1: normal(4, 6, 3, 3)}, pads=[1] * 4)
    double = gm.one_node(
        "Conv", [normal(2, 6, 9, 8).astype(float)], {1: normal(4, 6, 3, 3).astype(float)}, pads=[1] * 4
    )
    (found,) = load(double[0])(double[1]).values()
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected(*single)["o0"], rtol=0, atol=1e-4)


def test_half_precision() -> None:
    model, feeds = gm.one_node(
        "Conv", [normal(2, 6, 9, 8).astype(np.float16)], {1: normal(4, 6, 3, 3).astype(np.float16)}
    )
    (found,) = load(model)(feeds).values()
    wanted = gpu_conv.conv(feeds["i0"].astype(float), normal(4, 6, 3, 3).astype(np.float16).astype(float))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


# The face


def test_calls() -> None:
    b = Builder()
    model = b.model({"x": (np.float32, ["n", 4])}, b.node("Relu", "x"))
    runner = load(model.SerializeToString())
    x = normal(3, 4)
    for inputs in (x, {"x": x}):
        np.testing.assert_array_equal(runner(inputs)["t0"], np.maximum(x, 0))
    assert [str(p) for p in runner.inputs] == ["'x': float32 (n, 4)"]
    assert runner.outputs[0].name == "t0"
    assert "'x': float32 (n, 4) -> 't0'" in repr(runner)
    assert runner(np.zeros((0, 4), np.float32))["t0"].shape == (0, 4)


def test_python_scalars_are_inputs() -> None:
    add = helper.make_node("Add", ["a", "b"], ["y"])
    runner = load(model_of([add], {"a": (np.float32, []), "b": (np.float32, [2])}, ["y"]))
    np.testing.assert_array_equal(runner({"a": 1.5, "b": np.ones(2, np.float32)})["y"], np.float32([2.5, 2.5]))


def test_kernels_in_the_emulator() -> None:
    """The CUDA kernels compute the convolutions of a network, on the CPU."""
    b = Builder()
    x = b.conv_bn("x", (8, 3, 3, 3), act="relu6", pads=[1] * 4, strides=[2, 2])
    x = b.node("Add", b.conv_bn(x, (8, 1, 3, 3), act=None, pads=[1] * 4, group=8), x)
    x = b.conv_bn(x, (16, 8, 1, 1), act="relu")
    model = b.model(
        {"x": (np.float32, ["n", 3, 8, 8])}, b.node("ConvTranspose", x, b.weight(16, 4, 2, 2), strides=[2, 2])
    )
    runner = load(model, device="emulator")
    assert_agrees(runner, model, {"x": normal(1, 3, 8, 8)}, 1e-5)
    kernels = [r.kernel for r in runner.profile(normal(1, 3, 8, 8), repeat=1) if r.op.startswith("Conv")]
    assert not {"im2col_matmul", "numpy"} & set(kernels)
    with pytest.raises(ValueError, match="device must be None or one of cpu, cuda, emulator, got 'gpu'"):
        load(model, device="gpu")


def test_load_from_a_path(tmp_path: Path) -> None:
    b = Builder()
    path = tmp_path / "m.onnx"
    onnx.save(b.model({"x": (np.float32, ["n", 4])}, b.node("Relu", "x")), path)
    for source in (path, str(path)):
        assert repr(load(source)).startswith("<Model m.onnx")


def test_threads_wait_for_each_other() -> None:
    model = gm.inverted_residuals(gm.MOBILENET_V2[:3], size=32)
    runner = load(model)
    inputs = [normal(1, 3, 32, 32, seed=i) for i in range(4)]
    wanted = [expected(model, {"x": x}) for x in inputs]
    failures: list[Any] = []

    def work(i: int) -> None:
        for _ in range(5):
            (found,), (right,) = runner(inputs[i]).values(), wanted[i].values()
            if np.abs(found - right).max() > 1e-4 * np.abs(right).max():
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_profile() -> None:
    b = Builder()
    x = b.node("Relu", b.node("Conv", "x", b.weight(8, 4, 1, 1), b.weight(8)))
    model = b.model({"x": (np.float32, ["n", 4, 5, 5])}, b.node("Flatten", b.node("GlobalAveragePool", x)))
    profile = load(model).profile(normal(1, 4, 5, 5), repeat=3)
    assert [r.op for r in profile] == ["ChannelsLast", "Conv+relu", "GlobalAveragePool", "ChannelsFirst", "Flatten"]
    conv = profile[1]
    assert conv.node == "Conv_0"
    assert conv.shape == (1, 5, 5, 8)
    assert conv.bytes == 4 * (100 + 32 + 8 + 200)
    assert conv.seconds > 0
    assert profile[3].bytes == 0  # a view
    table = str(profile).splitlines()
    assert len(table) == len(profile) + 2
    assert "Conv+relu" in table[2]
    assert "total" in table[-1]


def test_import_needs_no_onnx() -> None:
    code = "import sys, gpu_conv; sys.exit(any(m == 'onnx' or m.startswith('gpu_conv.graph') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, gpu_conv.onnx, onnx; assert hasattr(onnx, 'ModelProto'); sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_too_large_results_are_refused() -> None:
    expand = helper.make_node("Expand", ["x", "s"], ["y"], name="bomb")
    runner = load(model_of([expand], {"x": (np.float32, [1]), "s": (np.int64, [2])}, ["y"]))
    with pytest.raises(ModelError, match=r"node 'bomb'.*elements"):
        runner({"x": normal(1), "s": np.array([2**40, 2**20])})


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


def test_padding_contributes_nothing_even_to_infinite_filters() -> None:
    """A border of zeros around the input would: 0 * inf is NaN."""
    b = Builder()
    w = np.ones((6, 1, 3, 3), np.float32)
    w[0, 0, 0, 0] = np.inf
    x = b.node("Abs", b.node("Conv", "x", b.weight(6, 6, 1, 1), b.weight(6)))
    y = b.node("Conv", x, b.constant(w), group=6, pads=[1] * 4)
    runner = load(b.model({"x": (np.float32, ["n", 6, 4, 4])}, y))
    for _ in range(2):
        (found,) = runner(normal(1, 6, 4, 4)).values()
        assert np.isinf(found[0, 0, 1:, 1:]).all()
        assert np.isfinite(found[0, 0, 0]).all()
        assert np.isfinite(found[0, 1:]).all()
