"""Whole networks on the ONNX runner against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpu_conv
from gpu_conv.onnx import load

from . import graph_models as gm
from .graph_models import Builder, assert_agrees, expected, model_of, normal, steps

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
    # everything is fused into the convolutions, nothing is transposed between them; large blocks go row by row
    found = steps(runner, normal(1, 3, 96, 96))
    blocks = found.pop("InvertedResidual")
    assert blocks >= 1
    assert found == {"Conv": convolutions - 3 * blocks, **BORDERS}


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
