"""CUDA graphs of whole models: on a stand-in for CuPy whose graphs do their work again, and on a real GPU."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import helper

from gpu_conv.graph import capture
from gpu_conv.graph.plan import Plan
from gpu_conv.onnx import load

from . import graph_models as gm
from .graph_models import Builder, expected, model_of, normal
from .test_onnx_namespace import DeviceArray, put, standin

__all__ = ["standin"]  # a fixture


class Stream:
    """A stream that writes down what is done while it captures."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.ptr = 7

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def synchronize(self) -> None:
        assert DeviceArray.tape is None, "nothing may wait while a graph is captured"

    def begin_capture(self) -> None:
        DeviceArray.tape = []

    def end_capture(self) -> Any:
        tape, DeviceArray.tape = DeviceArray.tape, None

        def launch(stream: Any) -> None:
            for work in tape:
                work()

        return SimpleNamespace(launch=launch)


@pytest.fixture
def cuda(standin: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    pools: list[Any] = []

    def pool() -> Any:
        pools.append(SimpleNamespace(malloc=None))
        return pools[-1]

    standin.cuda = SimpleNamespace(
        Stream=Stream, get_current_stream=Stream, MemoryPool=pool, using_allocator=lambda malloc: nullcontext()
    )
    monkeypatch.setattr(DeviceArray, "device", SimpleNamespace(id=0), raising=False)
    monkeypatch.setattr(capture, "namespace", lambda a: standin if isinstance(a, DeviceArray) else np)
    return standin.cuda


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that are run one by one, in order."""
    seen: list[str] = []
    execute = Plan.execute

    def counted(self: Plan, steps: Any, values: Any, observe: Any = None) -> Any:
        seen.extend(step.call.node.op for step in steps)
        return execute(self, steps, values, observe)

    monkeypatch.setattr(Plan, "execute", counted)
    return seen


def network() -> Any:
    """Convolutions, a residual, pooling, shape arithmetic, a dense layer."""
    b = Builder()
    x = b.conv_bn("x", (8, 3, 3, 3), act="hard_swish", pads=[1] * 4, strides=[2, 2])
    x = b.node("Add", b.conv_bn(x, (8, 1, 3, 3), act=None, pads=[1] * 4, group=8), x)
    x = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("GlobalAveragePool", x)
    batch = b.node("Gather", b.node("Shape", x), b.constant(np.array([0])))
    x = b.node("Reshape", x, b.node("Concat", batch, b.constant(np.array([-1])), axis=0))
    x = b.node("MatMul", b.node("Gemm", x, b.weight(5, 8), b.weight(5), transB=1), b.weight(5, 4))
    return b.model({"x": (np.float32, ["n", 3, "h", "w"])}, x)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_replays(cuda: Any, steps: list[str], dtype: str) -> None:
    """New inputs, new results; old results stay; a second shape has a graph of its own."""
    model = network()
    runner = load(model, graph=True, dtype=dtype)
    kept = []
    for seed in range(4):
        for shape in ((2, 3, 8, 8), (1, 3, 9, 6)):
            steps.clear()
            x = normal(*shape, seed=seed)
            (wanted,) = expected(model, {"x": x}).values()
            (found,) = runner(put(x)).values()
            assert isinstance(found, DeviceArray)
            assert found.dtype == np.float32
            kept.append((found, wanted))
            if seed > 1:
                assert steps == ["ChannelsLast"], "everything else is in the graph"
    for found, wanted in kept:
        limit = {"float32": 1e-5, "float16": 1e-2}[dtype] * np.abs(wanted).max()
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=limit)
    assert [p.captured for p in runner.plans] == [True, True]
    assert [p.inputs for p in runner.plans] == [((2, 3, 8, 8),), ((1, 3, 9, 6),)]


def test_results_are_overwritten_if_asked(cuda: Any) -> None:
    model = network()
    runner = load(model, graph=True)
    inputs = [normal(1, 3, 8, 8, seed=i) for i in range(4)]
    results = [next(iter(runner(put(x), overwrite=True).values())) for x in inputs]
    assert results[2] is results[3]
    (wanted,) = expected(model, {"x": inputs[3]}).values()
    np.testing.assert_allclose(np.asarray(results[2]), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_an_input_read_by_captured_steps_is_copied(cuda: Any) -> None:
    b = Builder()
    x = b.node("Add", b.node("Relu", "x"), "x")
    model = b.model({"x": (np.float32, ["n", 4])}, x, b.node("Mul", "x", "x"))
    runner = load(model, graph=True)
    for seed in range(4):
        x_ = normal(3, 4, seed=seed)
        sums, squares = (np.asarray(a) for a in runner(put(x_)).values())
        np.testing.assert_array_equal(sums, np.maximum(x_, 0) + x_)
        np.testing.assert_array_equal(squares, x_ * x_)
    assert runner.plans[0].captured


def test_what_needs_the_host_runs_step_by_step(cuda: Any) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("Relu", ["r"], ["y"])]
    runner = load(model_of(nodes, {"x": (np.float32, [6]), "s": (np.int64, [2])}, ["y"]), graph=True)
    x = normal(6)
    for shape in ((2, 3), (3, 2), (1, 6)):
        (found,) = runner({"x": put(x), "s": put(np.array(shape))}).values()
        np.testing.assert_array_equal(np.asarray(found), np.maximum(x, 0).reshape(shape))
    (plan,) = runner.plans
    assert not plan.captured
    assert plan.uncaptured is not None
    assert "(Reshape -> 'r')" in plan.uncaptured


def test_products_of_computed_matrices_run_step_by_step(cuda: Any, standin: Any) -> None:
    """CuPy refuses to capture cuBLAS."""

    def matmul(a: Any, b: Any, out: Any = None) -> Any:
        if DeviceArray.tape is not None:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        return np.matmul(np.asarray(a), np.asarray(b)).view(DeviceArray)

    standin.matmul = matmul
    b = Builder()
    runner = load(b.model({"x": (np.float32, [3, 3])}, b.node("MatMul", "x", b.node("Relu", "x"))), graph=True)
    for seed in range(3):
        x = normal(3, 3, seed=seed)
        (found,) = runner(put(x)).values()
        np.testing.assert_allclose(np.asarray(found), x @ np.maximum(x, 0), rtol=1e-6)
    assert runner.plans[0].uncaptured == "calling cuBLAS API during stream capture is currently unsupported"
    assert DeviceArray.tape is None


def test_numpy_arrays_are_not_captured() -> None:
    model = network()
    runner = load(model, graph=True)
    for seed in range(2):
        x = normal(1, 3, 8, 8, seed=seed)
        (wanted,) = expected(model, {"x": x}).values()
        np.testing.assert_allclose(next(iter(runner(x).values())), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert runner.plans[0].uncaptured == "not all inputs are on the GPU"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [1, 4])
def test_networks_on_a_gpu(dtype: str, batch: int) -> None:
    """Captured on one stream, and once more on another; results of earlier calls stay."""
    import cupy

    model = gm.inverted_residuals(gm.MOBILENET_V2, size=96, bn=True)
    runner = load(model, graph=True, dtype=dtype)
    kept = []
    for stream in (cupy.cuda.Stream.null, cupy.cuda.Stream(non_blocking=True)):
        with stream:
            for seed in range(4):
                x = normal(batch, 3, 96, 96, seed=seed)
                kept.append((next(iter(runner(cupy.asarray(x)).values())), x))
            stream.synchronize()
    for found, x in kept:
        (wanted,) = expected(model, {"x": x}).values()
        limit = {"float32": 2e-4, "float16": 2e-2}[dtype] * np.abs(wanted).max()
        np.testing.assert_allclose(cupy.asnumpy(found), wanted, rtol=0, atol=limit)
    assert [p.uncaptured for p in runner.plans] == [None, None]
    assert all(p.captured for p in runner.plans)
