"""Models computed in float16: the border, the accuracy, what stays float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from benchmarks.networks import NETWORKS, picture
from gpu_conv.onnx import ModelError, load

from .graph_models import Builder, model_of, normal

# Largest difference from the float32 run over the largest value: 60 layers that round by 5e-4; measured 7e-4 to 1.6e-2.
BOUND = 2e-2
# Random weights without what training does to them: its values exceed 65504, the largest that float16 holds.
TOO_LARGE = {"mobileone_s0"}


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in TOO_LARGE])
def test_networks_against_float32(name: str) -> None:
    model = NETWORKS[name](64, 0.5)
    x = picture(64, batch=2)
    (wanted,) = load(model)(x).values()
    runner = load(model, dtype="float16")
    for given in (x, x, x.astype(np.float16)):
        (found,) = runner(given).values()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=0, atol=BOUND * np.abs(wanted).max())
    assert not np.array_equal(found, wanted)
    floats = {n: c for n, c in runner.graph.constants.items() if c.dtype == np.float32}
    biases = {node.inputs[2] for node in runner.graph.nodes if node.op == "Conv" and len(node.inputs) > 2}
    assert set(floats) <= biases, "weights are float16"


def test_kernels_sum_in_float32() -> None:
    """4096 products of 1: float16 sums would stop at 2048. Convolution, dense layer and mean; on the kernels too."""
    b = Builder()
    x = b.node("Conv", "x", b.constant(np.ones((8, 256, 4, 4), np.float32)), b.constant(np.full(8, 0.25, np.float32)))
    pooled = b.node("Flatten", b.node("GlobalAveragePool", "x"))
    dense = b.node("Gemm", pooled, b.constant(np.ones((256, 3), np.float32)))
    dense = b.node("MatMul", b.node("Mul", dense, b.constant(np.float32(16))), b.constant(np.ones((3, 8), np.float32)))
    y = b.node("Add", b.node("Flatten", x), dense)
    model = b.model({"x": (np.float32, ["n", 256, 4, 4])}, y)
    given = np.ones((2, 256, 4, 4), np.float32)
    for device in (None, "emulator"):
        (found,) = load(model, dtype="float16", device=device)(given).values()
        np.testing.assert_array_equal(found, np.full((2, 8), 4096 + 3 * 256 * 16, np.float32))


def test_mean_of_many_pixels() -> None:
    b = Builder()
    model = b.model({"x": (np.float32, [1, 2, 120, 120])}, b.node("GlobalAveragePool", "x"))
    (found,) = load(model, dtype="float16")(np.full((1, 2, 120, 120), 6, np.float32)).values()
    np.testing.assert_array_equal(found, np.full((1, 2, 1, 1), 6, np.float32))


@pytest.mark.parametrize("device", [None, "emulator"])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_a_product_at_the_end_is_not_rounded(op: str, device: str | None) -> None:
    """2049 products of 1, which float16 rounds to 2048; what somebody else reads has the graph's type."""
    b = Builder()
    y = b.node(op, "x", b.constant(np.ones((2049, 8), np.float32)))
    given = np.ones((3, 2049), np.float32)
    runner = load(b.model({"x": (np.float32, ["n", 2049])}, y), dtype="float16", device=device)
    for _ in range(2):
        (found,) = runner(given).values()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.full((3, 8), 2049, np.float32))
    assert [r.op for r in runner.profile(given, repeat=1)] == ["Round", op]
    runner = load(b.model({"x": (np.float32, ["n", 2049])}, y, b.node("Relu", y)), dtype="float16", device=device)
    for found in runner(given).values():
        np.testing.assert_array_equal(found, np.full((3, 8), 2048, np.float32))


def test_types_at_the_border() -> None:
    nodes = [
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "x"], ["sum"]),
        helper.make_node("Greater", ["sum", "x"], ["flag"]),
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Resize", ["x", "", "scales"], ["large"], mode="nearest"),
    ]
    scales = np.array([1, 1, 2, 2], np.float32)
    inputs = {"x": (np.float32, [1, 1, 2, 2]), "i": (np.int32, [1, 1, 2, 2])}
    runner = load(model_of(nodes, inputs, ["sum", "flag", "same", "large"], {"scales": scales}), dtype="float16")
    x = normal(1, 1, 2, 2)
    half = x.astype(np.float16)
    for _ in range(2):
        found = runner({"x": x, "i": np.full((1, 1, 2, 2), 3, np.int32)})
        assert [found[n].dtype.name for n in ("sum", "flag", "large")] == ["float32", "bool", "float32"]
        np.testing.assert_array_equal(found["sum"], (half + np.float16(3)).astype(np.float32))
        np.testing.assert_array_equal(found["large"], half.repeat(2, 2).repeat(2, 3).astype(np.float32))
        np.testing.assert_allclose(found["same"], x, rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "error"), [("float64", TypeError), ("bfloat16", TypeError), ("int8", TypeError), (np.float16, None)]
)
def test_types(dtype: Any, error: Any) -> None:
    b = Builder()
    model = b.model({"x": (np.float32, ["n", 4])}, b.node("Relu", "x"))
    if error:
        with pytest.raises(error, match="dtype must be None or one of float32, float16"):
            load(model, dtype=dtype)
    else:
        assert next(iter(load(model, dtype=dtype)(normal(1, 4)).values())).dtype == np.float32


def test_refusals() -> None:
    b = Builder()
    large = b.model({"x": (np.float32, ["n", 4])}, b.node("Mul", "x", b.constant(np.float32(1e6))))
    with pytest.raises(ModelError, match=r"Mul.*holds 1e\+06, which float16 cannot"):
        load(large, dtype="float16")
    b = Builder()
    scale, zero = b.constant(np.float32(0.1)), b.constant(np.uint8(3))
    y = b.node("DequantizeLinear", b.node("QuantizeLinear", "x", scale, zero), scale, zero)
    with pytest.raises(ModelError, match="a quantised model is computed as it is"):
        load(b.model({"x": (np.float32, ["n", 4])}, y), dtype="float16")


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in TOO_LARGE])
def test_networks_on_a_gpu(name: str) -> None:
    import cupy

    model = NETWORKS[name]()
    x = picture(224)
    (wanted,) = load(model)(x).values()
    runner = load(model, dtype="float16", graph=True)
    for _ in range(3):
        (found,) = runner(cupy.asarray(x)).values()
        np.testing.assert_allclose(cupy.asnumpy(found), wanted, rtol=0, atol=BOUND * np.abs(wanted).max())
    assert runner.plans[0].uncaptured is None
