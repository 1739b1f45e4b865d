"""``gpu_conv.warmup``: the kernels that it compiles are those that the program launches."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpu_conv
from gpu_conv import emulator, execute
from gpu_conv.cuda import compiler

X = np.ones((1, 8, 6, 6), np.float32)
W = np.ones((8, 1, 3, 3), np.float32)


@pytest.fixture
def launched(monkeypatch):
    """Every launch that the emulator runs."""
    seen = []
    monkeypatch.setattr(emulator, "run", lambda launch, operands: seen.append(launch))
    return seen


@pytest.fixture
def wanted(monkeypatch):
    """What is given to the compiler, which does nothing."""
    seen = []
    monkeypatch.setattr(compiler, "warm", lambda launches, arch: seen.extend(launches))
    return seen


def network():
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name)
        for name, shape in (("a", (8, 3, 3, 3)), ("b", (8, 1, 3, 3)), ("c", (16, 8, 1, 1)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["3"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Conv", ["3", "c"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 3, "h", 12]), ("y", ["n", 16, None, None]))
    ]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_model_wants_what_it_will_launch(launched, wanted):
    assert gpu_conv.warmup(network(), arch=emulator.DEFAULT_ARCH, dims={"h": 12}) is None
    assert launched == []
    x = np.zeros((1, 3, 12, 12), np.float32)
    gpu_conv.onnx.load(network(), device="emulator")({"x": x})
    assert wanted == launched
    assert [launch.kernel for launch in wanted].count("channels_last") == 1
    assert len(wanted) == 4, "three convolutions, and the input to channels last"
    other = len(wanted)
    gpu_conv.warmup(network(), arch="sm_90a", dims={"h": 12, "n": 4})
    assert wanted[:other] != wanted[other:], "another batch on another GPU is another plan"


def test_a_function_wants_what_it_will_launch(launched, wanted):
    layer = gpu_conv.Conv(W, groups=8, padding=1)
    results = []

    def program():
        results.append(layer(gpu_conv.conv2d(X, W, groups=8, padding=1, activation="relu")))
        results.append(gpu_conv.conv2d(X, W, groups=8, device="emulator"))
        assert gpu_conv.conv2d(X, W, groups=8, device="cpu").all()

    gpu_conv.warmup(program, arch=emulator.DEFAULT_ARCH)
    assert not any(result.any() for result in results), "nothing is convolved"
    with execute.instead("emulator"):
        program()
    assert wanted == launched
    assert len(wanted) == 3
    assert layer(X).any(), "neither the layer nor the library remembers the recorder"


def test_kernels_are_compiled_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPU_CONV_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_slots", type(compiler._slots)())
    steps = []
    layer = gpu_conv.Conv(W, groups=8, padding=1)
    (kernel,) = gpu_conv.warmup(lambda: (layer(X), layer(X)), arch="sm_120", report=steps.append)
    assert (kernel.arch, kernel.spill_bytes) == ("sm_120", 0)
    assert len(list((tmp_path / "kernels").iterdir())) == 1
    assert steps == ["compiling 1 kernels for sm_120"]


def test_what_cannot_be_warmed():
    with pytest.raises(ValueError, match="arch='sm_12' is unknown"):
        gpu_conv.warmup(lambda: None, arch="sm_12")
    with pytest.raises(ValueError, match=r"axis 2 of input 'x': float32 \(n, 3, h, 12\) is open.*{'h': 224}"):
        gpu_conv.warmup(network(), arch="sm_80")
    silent = onnx.ModelProto.FromString(network().SerializeToString())
    silent.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ValueError, match="does not say the shape"):
        gpu_conv.warmup(silent, arch="sm_80")
