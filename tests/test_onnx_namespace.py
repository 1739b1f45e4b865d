"""The runner on arrays of another library: everything on the device, shape arithmetic on the host, nothing mixed.

A real GPU runs the whole networks (marker ``gpu``). Everywhere else a stand-in for CuPy does: NumPy arrays of a type of
their own that refuse, as CuPy's do, to meet plain NumPy arrays.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import helper

from gpu_conv.graph import device, ops, planner
from gpu_conv.graph.ops import registry
from gpu_conv.onnx import load

from . import graph_models as gm
from .graph_models import Builder, expected, model_of, normal, one_node
from .onnx_cases import CASES
from .test_onnx_ops import assert_same


class DeviceArray(np.ndarray):
    """An array "on the device"; ``get`` brings it to the host, and counts as a synchronisation."""

    synchronisations = 0
    tape: list[Any] | None = None  # while a CUDA graph is captured: what has to be done again when it is launched

    def get(self) -> Any:
        DeviceArray.synchronisations += 1
        return np.asarray(self)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **kwargs: Any) -> Any:
        _refuse_host_arrays(inputs + out)
        given = {"out": tuple(_plain(o) for o in out)} if out else {}
        return done(lambda: _wrapped(getattr(ufunc, method)(*map(_plain, inputs), **given, **kwargs), out))

    def __setitem__(self, key: Any, value: Any) -> None:
        _refuse_host_arrays([value])
        done(lambda: np.ndarray.__setitem__(self, key, value))

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        return done(lambda: np.ndarray.astype(self, *args, **kwargs))

    def copy(self, order: Any = "C") -> Any:
        return done(lambda: np.ndarray.copy(self, order))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        _refuse_host_arrays(_flat((args, tuple(kwargs.values()))))
        out = kwargs.get("out")
        kwargs = {k: _plain(v) for k, v in kwargs.items()}
        return done(lambda: _wrapped(function(*_deep(args), **kwargs), () if out is None else (out,)))


def done(work: Any) -> Any:
    """The result of some work on the device; on the tape, to do it again means to write to the very same memory."""
    tape, DeviceArray.tape = DeviceArray.tape, None  # what it does in turn is part of it
    try:
        result = work()
    finally:
        DeviceArray.tape = tape
    if tape is not None:
        tape.append(lambda: _written(result, work()))
    return result


def _written(result: Any, again: Any) -> None:
    for old, new in zip(*((v if isinstance(v, tuple) else (v,)) for v in (result, again)), strict=True):
        if old is not new:
            np.copyto(_plain(old), _plain(new))


def _flat(value: Any) -> list[Any]:
    return [leaf for v in value for leaf in _flat(v)] if isinstance(value, (tuple, list)) else [value]


def _deep(value: Any) -> Any:
    return type(value)(_deep(v) for v in value) if isinstance(value, (tuple, list)) else _plain(value)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, DeviceArray) else value


def _refuse_host_arrays(operands: Any) -> None:
    for operand in operands:
        if type(operand) is np.ndarray:
            raise TypeError(f"Unsupported type {type(operand)}")  # CuPy's words


def _wrapped(result: Any, out: Any = ()) -> Any:
    if out:
        return out[0]
    if isinstance(result, tuple):
        return tuple(map(_wrapped, result))
    return np.asarray(result).view(DeviceArray) if isinstance(result, (np.ndarray, np.generic)) else result


class StandIn(ModuleType):
    """What the runner uses of ``cupy``: NumPy's functions, results on the device."""

    ndarray = DeviceArray

    def __getattr__(self, name: str) -> Any:
        if name == "cuda":
            raise AttributeError(name)
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type):
            return found
        if name in ("asarray", "array"):
            return lambda a, *args, **kw: done(lambda: found(_plain(a), *args, **kw).view(DeviceArray))

        def call(*args: Any, **kwargs: Any) -> Any:
            _refuse_host_arrays(_flat((args, tuple(kwargs.values()))))
            out = kwargs.get("out")
            kwargs = {k: _plain(v) for k, v in kwargs.items()}
            return done(lambda: _wrapped(found(*_deep(args), **kwargs), () if out is None else (out,)))

        return call


DeviceArray.__module__ = "standin"


@pytest.fixture(autouse=True)
def standin(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    if request.node.get_closest_marker("gpu"):
        return None
    module = StandIn("standin")
    monkeypatch.setitem(sys.modules, "standin", module)
    for user in (device, planner):
        monkeypatch.setattr(user, "namespace", lambda a: module if isinstance(a, DeviceArray) else np)
    monkeypatch.setattr("gpu_conv.graph.model.namespace", lambda a: np)  # accepts the type
    _on_device(monkeypatch, ops.conv, "convolve")
    _on_device(monkeypatch, ops.conv, "convolve_transposed")
    _on_device(monkeypatch, ops.deform, "convolve")
    monkeypatch.setattr("gpu_conv.graph.ops.conv.Conv", Layer)
    monkeypatch.setattr("gpu_conv.graph.ops.nn.Conv", Layer)
    return module


def _on_device(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
    """The convolutions themselves compute on the CPU here, and check that all they get is on the device."""
    function = getattr(module, name)

    def run(*args: Any, out: Any = None, **options: Any) -> Any:
        operands = (*args, *options.values())
        if not any(isinstance(a, DeviceArray) for a in operands):
            return function(*args, out=out, **options)
        _refuse_host_arrays(operands)

        def compute() -> Any:
            result = function(*map(_plain, args), **{k: _plain(v) for k, v in options.items()})
            if out is None:
                return result.view(DeviceArray)
            out[...] = result.view(DeviceArray)
            return out

        return done(compute)

    monkeypatch.setattr(module, name, run)


class Layer:
    def __init__(self, w: Any, bias: Any = None, **options: Any) -> None:
        self.w, self.bias, self.options = w, bias, options

    def __call__(self, x: Any, *, residual: Any = None, out: Any = None) -> Any:
        return ops.conv.convolve(x, self.w, self.bias, residual=residual, out=out, **self.options)

    def bind(self, x: Any, *, residual: Any = None, out: Any = None) -> Any:
        return lambda: self(x, residual=residual, out=out)


def put(array: Any) -> Any:
    return array.copy().view(DeviceArray)


@pytest.mark.parametrize(("op", "inputs", "constants", "outputs", "opset", "attributes"), CASES)
def test_operator(op: str, inputs: Any, constants: Any, outputs: int, opset: int, attributes: Any) -> None:
    """Every case of the operator tests, its float inputs on the device, its integers (sizes, indices) on the host."""
    model, feeds = one_node(op, inputs, constants, outputs, opset, **attributes)
    wanted = expected(model, feeds)
    given = {n: put(a) if a.dtype.kind == "f" else a for n, a in feeds.items()}
    runner = load(model)
    for _ in range(2):
        found = runner(given)
        for name, array in wanted.items():
            on_device = any(isinstance(a, DeviceArray) for a in given.values()) and registry.OPS[op].shape_only is False
            assert isinstance(found[name], DeviceArray) == on_device
            assert_same(np.asarray(found[name]), array, name)


def test_network_without_synchronisation() -> None:
    """Convolutions, shape arithmetic, reshapes: in a replayed run nothing asks the device for a value."""
    b = Builder()
    x = b.conv_bn("x", (8, 3, 3, 3), act="hard_swish", pads=[1] * 4, strides=[2, 2])
    x = b.node("Add", b.conv_bn(x, (8, 1, 3, 3), act=None, pads=[1] * 4, group=8), x)
    x = b.node("Concat", x, b.node("Relu", x), axis=1)
    shape = b.node("Shape", x)
    batch = b.node("Gather", shape, b.constant(np.array([0])))
    flat = b.node("Reshape", x, b.node("Concat", batch, b.constant(np.array([16, -1])), axis=0))
    weights = [b.weight(1, 20, 16, scale=0.3), b.weight(1, 20, 5, scale=0.3), b.weight(1, 40, scale=0.3)]
    x = b.node("LSTM", b.node("Transpose", flat, perm=[2, 0, 1]), *weights, hidden_size=5)
    x = b.node("Mul", b.node("ReduceMean", x, axes=[0, 1], keepdims=0), b.weight(5))
    model = b.model({"x": (np.float32, ["n", 3, "h", "w"])}, b.node("Softmax", x))
    runner = load(model)
    for shape_ in ((2, 3, 8, 8), (1, 3, 7, 10)):
        x_ = normal(*shape_)
        (wanted,) = expected(model, {"x": x_}).values()
        for _ in range(3):
            DeviceArray.synchronisations = 0
            (found,) = runner(put(x_)).values()
            assert isinstance(found, DeviceArray)
            assert_same(np.asarray(found), wanted, "")
        assert DeviceArray.synchronisations == 0


def test_host_and_device_models_share_nothing() -> None:
    model = gm.inverted_residuals(gm.MOBILENET_V2[:3], size=32)
    runner = load(model)
    x = normal(1, 3, 32, 32)
    (wanted,) = expected(model, {"x": x}).values()
    for given in (x, put(x), x, put(x)):
        (found,) = runner(given).values()
        assert type(found) is type(given)
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_condition_on_the_device() -> None:
    yes, no = (
        helper.make_graph([helper.make_node(op, ["x"], [op])], op, [], [helper.make_tensor_value_info(op, 1, None)])
        for op in ("Relu", "Tanh")
    )
    choose = helper.make_node("If", ["flag"], ["y"], then_branch=yes, else_branch=no)
    runner = load(model_of([choose], {"x": (np.float32, [4]), "flag": (np.bool_, [])}, ["y"]))
    x = normal(4)
    for flag, wanted in ((True, np.maximum(x, 0)), (False, np.tanh(x))):
        found = runner({"x": put(x), "flag": put(np.array(flag))})["y"]
        assert isinstance(found, DeviceArray)
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("stages", [gm.MOBILENET_V2, gm.EFFICIENTNET_LITE0], ids=["mobilenet_v2", "efficientnet_lite0"])
def test_networks_on_a_gpu(stages: Any) -> None:
    import cupy

    model = gm.inverted_residuals(stages, size=96, bn=True, same=stages is gm.EFFICIENTNET_LITE0)
    runner = load(model)
    for batch in (1, 4):
        x = normal(batch, 3, 96, 96)
        (wanted,) = expected(model, {"x": x}).values()
        for _ in range(3):
            (found,) = runner(cupy.asarray(x)).values()
            assert isinstance(found, cupy.ndarray)
            np.testing.assert_allclose(cupy.asnumpy(found), wanted, rtol=0, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.gpu
@pytest.mark.parametrize("path", gm.light_models(), ids=lambda p: p.stem)
def test_light_models_on_a_gpu(path: Any) -> None:
    import cupy

    model, feeds = gm.with_random_weights(path)
    (wanted,) = expected(model, feeds).values()
    runner = load(model)
    for _ in range(2):
        (found,) = runner({name: cupy.asarray(a) for name, a in feeds.items()}).values()
        np.testing.assert_allclose(cupy.asnumpy(found), wanted, rtol=0, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "inputs", "constants", "outputs", "opset", "attributes"), CASES)
def test_operator_on_a_gpu(op: str, inputs: Any, constants: Any, outputs: int, opset: int, attributes: Any) -> None:
    import cupy

    model, feeds = one_node(op, inputs, constants, outputs, opset, **attributes)
    wanted = expected(model, feeds)
    given = {n: cupy.asarray(a) if a.dtype.kind == "f" else a for n, a in feeds.items()}
    runner = load(model)
    for _ in range(2):
        for name, array in runner(given).items():
            found = cupy.asnumpy(array)
            scale = np.abs(wanted[name][np.isfinite(wanted[name])]).max(initial=0) if found.dtype.kind == "f" else 0
            np.testing.assert_allclose(
                found, wanted[name], rtol=2e-3 if found.dtype == np.float16 else 0, atol=2e-5 * scale
            )
