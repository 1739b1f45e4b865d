"""The face of the ONNX runner: loading, calling, profiling."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from gpu_conv.onnx import ModelError, load

from . import graph_models as gm
from .graph_models import Builder, assert_agrees, expected, model_of, normal


def test_outputs_never_share_memory_with_inputs() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Reshape", ["x", "s"], ["b"])]
    runner = load(model_of(nodes, {"x": (np.float32, [2, 3])}, ["a", "b"], {"s": np.array([3, 2])}))
    x = normal(2, 3)
    for _ in range(2):
        for array in runner(x).values():
            assert not np.shares_memory(array, x)
            assert array.flags.c_contiguous


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


@pytest.mark.filterwarnings("error")
def test_infinity_and_nan_are_data() -> None:
    log = helper.make_node("Log", ["x"], ["y"])
    runner = load(model_of([log], {"x": (np.float32, [3])}, ["y"]))
    for _ in range(2):
        np.testing.assert_array_equal(runner(np.float32([0, -1, 1]))["y"], np.float32([-np.inf, np.nan, 0]))


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
    emulated = load(model, device="emulator").profile(normal(1, 4, 5, 5), repeat=1)
    assert [r.kernel for r in emulated] == ["channels_last", "pointwise", "global_average", "numpy", "numpy"]
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
