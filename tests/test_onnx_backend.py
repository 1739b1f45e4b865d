"""The onnx package's own backend tests that hold a convolution, and what they leave out, through ``gpu_conv.onnx``."""

from __future__ import annotations

import doctest
import importlib
import itertools
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, helper, numpy_helper
from onnx.backend.test.case import node as node_cases
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from gpu_conv.graph.parse import OPSETS
from gpu_conv.onnx import Backend, ModelError, backend

from .graph_models import normal
from .test_examples import check

CONVOLUTIONS = ("CausalConvWithState", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "QLinearConv")
SCHEMAS = [s for s in onnx.defs.get_all_schemas_with_history() if not s.domain]
DEVICES = ["CPU", "EMULATOR", pytest.param("CUDA", marks=pytest.mark.gpu)]


def convolves(model: onnx.ModelProto) -> bool:
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    return any(n.op_type in CONVOLUTIONS for n in nodes)


@cache
def cases() -> dict[str, Any]:
    """Every test case of the onnx wheel with a convolution in it, by kind and name."""
    # Importing a file makes its cases; ``collect_testcases`` imports all files and takes 7 s.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting the shape on a NumPy array", DeprecationWarning)  # since NumPy 2.5
        for file in sorted(Path(node_cases.__file__).parent.glob("*.py")):
            if any(f'"{op}"' in file.read_text() for op in CONVOLUTIONS):
                importlib.import_module(f"{node_cases.__name__}.{file.stem}")
    found = {f"node/{c.name}": c for c in node_cases._NodeTestCases if convolves(c.model)}
    for kind in ("pytorch-converted", "pytorch-operator", "simple"):
        for case in load_model_tests(kind=kind):
            case.model = onnx.load(Path(case.model_dir) / "model.onnx") if case.model_dir else case.model
            if convolves(case.model):
                case.data_sets = [read(folder) for folder in sorted(Path(case.model_dir).glob("test_data_set_*"))]
                found[f"{kind}/{case.name}"] = case
    return found


def read(folder: Path) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of a data set."""
    inputs, outputs = (sorted(folder.glob(f"{kind}_*.pb")) for kind in ("input", "output"))
    return [tensor(p) for p in inputs], [tensor(p) for p in outputs]


def tensor(path: Path) -> Any:
    return numpy_helper.to_array(onnx.load_tensor(path))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sorted(cases()))
def test_case(name: str, device: str, record_property: Any) -> None:
    case = cases()[name]
    prepared = backend.prepare(case.model, device)
    assert case.data_sets
    for inputs, outputs in case.data_sets:
        for _ in range(2 if device == "CPU" else 1):  # planned, replayed
            found = prepared.run(list(inputs))
            Runner.assert_similar_outputs(outputs, list(found), case.rtol, case.atol)
    record_property("onnx_backend", (device, name))


def test_there_are_cases_of_every_operator() -> None:
    found = {n.op_type for case in cases().values() for n in case.model.graph.node}
    assert found >= set(CONVOLUTIONS)
    assert len(cases()) >= 80


def test_no_other_operator_is_made_of_convolutions() -> None:
    """Those that ONNX defines as functions have cases with their bodies spelled out."""
    made = {s.name for s in SCHEMAS for n in s.function_body.node if n.op_type in CONVOLUTIONS}
    context = {s.name for s in SCHEMAS if s.has_context_dependent_function and "Conv" in s.name}
    assert made | context <= set(CONVOLUTIONS)


# Every version of the operators: what each opset calls by that name


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    made = helper.make_node(op, inputs.split(), outputs.split(), **{k: v for k, v in attributes.items() if v != []})
    for key, value in attributes.items():
        if value == []:
            made.attribute.append(AttributeProto(name=key, type=AttributeProto.INTS))
    return made


X, W = normal(1, 4, 7, 6), normal(4, 2, 3, 2)
BYTES = np.random.default_rng(0).integers(0, 255, (1, 2, 5, 5)).astype(np.uint8)
SCALE, ZERO = np.float32(0.5), np.uint8(100)
OPERATORS: dict[str, tuple[int, Any, list[Any]]] = {
    "Conv": (1, node("Conv", "x w b", group=2, pads=[1, 0, 2, 1], strides=[2, 1]), [X, W, normal(4)]),
    "ConvTranspose": (1, node("ConvTranspose", "x w", strides=[2, 3], pads=[1, 0, 0, 1]), [X, normal(4, 3, 3, 3)]),
    "ConvInteger": (10, node("ConvInteger", "x w a b", pads=[1, 1, 1, 1]), [BYTES, BYTES[:, :, :3, :3], ZERO, ZERO]),
    "QLinearConv": (
        10,
        node("QLinearConv", "x sx zx w sw zw sy zy", strides=[2, 2]),
        [BYTES, SCALE, ZERO, BYTES[:, :, :3, :3], SCALE, ZERO, SCALE * 99, ZERO],
    ),
    "DeformConv": (19, node("DeformConv", "x w o", group=2), [X, W, normal(1, 12, 5, 5)]),
    "CausalConvWithState": (27, node("CausalConvWithState", "x w", "y z"), [X[0], normal(7, 1, 3)]),
}


@pytest.mark.parametrize("op", OPERATORS)
def test_every_opset(op: str) -> None:
    first, made, inputs = OPERATORS[op]
    wanted = backend.run_node(made, inputs)
    assert first == max(OPSETS[0], min(s.since_version for s in SCHEMAS if s.name == op))
    for opset in range(first, min(OPSETS[-1], onnx.defs.onnx_opset_version()) + 1):
        found = backend.run_node(made, inputs, opset_version=opset)
        np.testing.assert_array_equal(found["y"], wanted["y"])


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_empty_attributes_mean_their_defaults(op: str) -> None:
    inputs = [X, normal(4, 4, 3, 2)]
    bare = backend.run_node(node(op, "x w"), inputs)
    empty = {key: [] for key in ("pads", "strides", "dilations", "kernel_shape")}
    empty |= {"output_padding": [], "output_shape": []} if op == "ConvTranspose" else {}
    np.testing.assert_array_equal(backend.run_node(node(op, "x w", **empty), inputs)["y"], bare["y"])


# Deformable convolution where the wheel and onnxruntime have nothing: other ranks, other types, infinity, the emulator


def plain_deform_conv(x: Any, w: Any, offset: Any, mask: Any, groups: int, offset_groups: int, **window: Any) -> Any:
    """One multiplication after the other, in float64."""
    rank = x.ndim - 2
    pads, strides, dilations = (window.get(k) or [d] * rank for k, d in (("pads", 0), ("strides", 1), ("dilations", 1)))
    n, (channels, outs) = x.shape[0], (x.shape[1], w.shape[0])
    sizes = offset.shape[2:]
    taps = list(np.ndindex(w.shape[2:]))
    moves = offset.astype(np.float64).reshape(n, offset_groups, len(taps), rank, *sizes)
    factors = (
        np.ones((n, offset_groups, len(taps), *sizes)) if mask is None else mask.reshape(n, offset_groups, -1, *sizes)
    )
    y = np.zeros((n, outs, *sizes))
    for image, out, place in itertools.product(range(n), range(outs), np.ndindex(sizes)):
        group = out // (outs // groups)
        for i, (t, tap) in itertools.product(range(channels // groups), enumerate(taps)):
            channel = group * (channels // groups) + i
            og = channel // (channels // offset_groups)
            at = [
                place[a] * strides[a] - pads[a] + tap[a] * dilations[a] + moves[(image, og, t, a, *place)]
                for a in range(rank)
            ]
            value = interpolated(x[image, channel].astype(np.float64), at)
            y[(image, out, *place)] += value * factors[(image, og, t, *place)] * w[(out, i, *tap)]
    return y


def interpolated(pixels: Any, at: list[float]) -> float:
    """Linear along each axis; zero outside."""
    total = 0.0
    low = [int(np.floor(a)) for a in at]
    for corner in itertools.product((0, 1), repeat=len(at)):
        index = [a + c for a, c in zip(low, corner)]
        if all(0 <= i < n for i, n in zip(index, pixels.shape)):
            share = np.prod([1 - abs(a - i) for a, i in zip(at, index)])
            total += share * pixels[tuple(index)] if share else 0.0
    return float(total)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rank", "dtype"), [(1, "float64"), (2, "float16"), (3, "float32")])
def test_deform_conv(rank: int, dtype: str, device: str) -> None:
    rng = np.random.default_rng(rank)
    size, taps = (6, 7, 5)[:rank], 2**rank
    groups, offset_groups = 2, 3
    window = {"strides": [2, 1, 1][:rank], "dilations": [2, 2, 2][:rank], "pads": [1, 0, 1, 0, 1, 0][: 2 * rank]}
    sizes = tuple(
        (n + window["pads"][a] + window["pads"][rank + a] - 3) // window["strides"][a] + 1 for a, n in enumerate(size)
    )
    x = rng.integers(-4, 5, (2, 6, *size)).astype(dtype)
    w = rng.integers(-2, 3, (4, 3, *(2,) * rank)).astype(dtype)
    offset = (rng.integers(-12, 13, (2, offset_groups * taps * rank, *sizes)) / 2).astype(dtype)  # exact in halves
    mask = rng.integers(0, 2, (2, offset_groups * taps, *sizes)).astype(dtype)
    made = node("DeformConv", "x w o b m", group=groups, offset_group=offset_groups, **window)
    (found,) = backend.run_node(made, [x, w, offset, np.zeros(4, dtype), mask], device)
    wanted = plain_deform_conv(x, w, offset, mask, groups, offset_groups, **window)
    assert found.dtype == dtype
    assert np.abs(wanted).max() > 1
    np.testing.assert_array_equal(found, wanted.astype(dtype))


def test_deform_conv_and_what_is_not_finite() -> None:
    """Infinity reaches the windows that read it with a weight; NaN among the offsets reaches its own output."""
    x = np.ones((1, 1, 1, 5), np.float32)
    x[0, 0, 0, 2] = np.inf
    offset = np.zeros((1, 2, 1, 5), np.float32)
    offset[0, 1, 0, 3] = -0.5
    offset[0, 1, 0, 4] = np.nan
    (y,) = backend.run_node(node("DeformConv", "x w o"), [x, np.ones((1, 1, 1, 1), np.float32), offset])
    np.testing.assert_array_equal(y, [[[[1, 1, np.inf, np.inf, np.nan]]]])
    offset[0, 1, 0] = [np.inf, -np.inf, 1e30, -1e30, 9]
    (y,) = backend.run_node(node("DeformConv", "x w o"), [x, np.ones((1, 1, 1, 1), np.float32), offset])
    np.testing.assert_array_equal(y, np.zeros((1, 1, 1, 5)))


def test_state_is_handed_on() -> None:
    """Column by column, with the state of the call before, is the same as all columns at once."""
    x, w, bias = normal(2, 3, 6), normal(3, 1, 4), normal(3)
    made = node("CausalConvWithState", "x w b", "y state", activation="silu")
    whole, last = backend.run_node(made, [x, w, bias])
    made = node("CausalConvWithState", "x w b past", "y state", activation="silu")
    state = np.zeros((2, 3, 3), np.float32)
    for column in range(6):
        y, state = backend.run_node(made, [x[:, :, column : column + 1], w, bias, state])
        np.testing.assert_allclose(y[:, :, 0], whole[:, :, column], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state, last)
    np.testing.assert_array_equal(state, x[:, :, -3:])


# The interface itself


def test_example() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(Backend, "Backend")
    check(example)


def test_ways_to_pass_inputs() -> None:
    made = node("Conv", "x w")
    wanted = backend.run_node(made, [X, normal(2, 4, 3, 3)])
    assert wanted[0] is wanted["y"] is wanted.y
    np.testing.assert_array_equal(backend.run_node(made, {"x": X, "w": normal(2, 4, 3, 3)}).y, wanted.y)
    (relu,) = backend.run_node(node("Relu", "x"), X)
    np.testing.assert_array_equal(relu, np.maximum(X, 0))
    absent = helper.make_node("Clip", ["x", "", "high"], ["y"])
    np.testing.assert_array_equal(backend.run_node(absent, [X, np.float32(0.5)]).y, np.minimum(X, np.float32(0.5)))


def test_model_once_and_often() -> None:
    model = cases()["node/test_basic_conv_with_padding"].model
    ((inputs, (wanted,)),) = cases()["node/test_basic_conv_with_padding"].data_sets
    assert Backend.is_compatible(model)
    np.testing.assert_array_equal(backend.run_model(model, inputs)[0], wanted)
    prepared = Backend.prepare(model)
    for _ in range(2):
        np.testing.assert_array_equal(prepared.run(inputs)[0], wanted)


def test_devices() -> None:
    assert backend.supports_device("CPU") and backend.supports_device("EMULATOR")
    for unknown in ("TPU", "cpu", "CUDA:x", "CUDA:", ""):
        assert not backend.supports_device(unknown)
        with pytest.raises(ValueError, match="device must be one of CPU, CUDA, EMULATOR"):
            backend.run_node(node("Relu", "x"), X, unknown)
    assert not backend.supports_device("CUDA:1000")


UNSUPPORTED = helper.make_model(helper.make_graph([node("Det", "x")], "g", [], [onnx.ValueInfoProto(name="y")]))


def test_errors_speak_of_the_node() -> None:
    assert not backend.is_compatible(UNSUPPORTED)
    with pytest.raises(TypeError, match="no threads"):
        backend.prepare(UNSUPPORTED, threads=2)
    with pytest.raises(ModelError, match=r"takes 2 inputs \(x, w\), got 1"):
        backend.run_node(node("Conv", "x w"), [X])
    with pytest.raises(ModelError, match="opset 99"):
        backend.run_node(node("Relu", "x"), X, opset_version=99)
    w = normal(4, 4, 2, 2)
    for made, inputs, message in (
        (node("Conv", "x w", kernel_shape=[3, 3]), [X, w], r"kernel_shape \(3, 3\) differs"),
        (node("Conv", "x w", pads=[1, 1]), [X, w], "pads .* must fit 2 spatial axes"),
        (node("Conv", "x w", auto_pad="SAME"), [X, w], "auto_pad 'SAME' is unknown"),
        (node("Conv", "x w", group=3), [X, w], "groups=3"),
        (node("DeformConv", "x w o"), [X, w, normal(1, 8, 6, 6)], r"offset must have the shape \(1, 8, 6, 5\)"),
        (node("DeformConv", "x w o", offset_group=3), [X, w, normal(1, 8, 6, 5)], "4 input channels .*offset_group=3"),
        (
            node("DeformConv", "x w o b m"),
            [X, w, normal(1, 8, 6, 5), normal(4), normal(1, 8, 6, 5)],
            r"mask must have the shape \(1, 4, 6, 5\)",
        ),
        (node("CausalConvWithState", "x w", "y z"), [X[0], normal(4, 1, 3)], r"needs an input .*\(4, 7, 6\)"),
        (
            node("CausalConvWithState", "x w b p", "y z"),
            [X[0], normal(7, 1, 3), normal(7), normal(4, 7, 3)],
            "past_state must hold 2 columns",
        ),
        (
            node("CausalConvWithState", "x w", "y z", activation="gelu"),
            [X[0], normal(7, 1, 3)],
            "activation 'gelu' must be",
        ),
    ):
        with pytest.raises(ModelError, match=f"node '#0' .*{message}"):
            backend.run_node(made, inputs)
