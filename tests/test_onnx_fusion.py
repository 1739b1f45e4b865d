"""What the ONNX runner makes of a graph: which steps remain, and that the numbers stay."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from gpu_conv.onnx import load

from .graph_models import Builder, assert_agrees, normal, steps

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
