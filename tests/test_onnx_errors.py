"""Files and calls that cannot work: refused before any work, with an error that names the culprit and the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from gpu_conv.onnx import Model, ModelError, ModelTypeError, load

from .graph_models import model_of, normal

X = {"x": (np.float32, ["n", 4, 6, 6])}
W = normal(4, 4, 3, 3)


def conv(constants: Any = None, inputs: tuple[str, ...] = ("x", "w"), **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node("Conv", inputs, ["y"], name="the conv", **attributes)
    return model_of([node], X, ["y"], {"w": W, **(constants or {})}, check=False)


def node(op: str, inputs: Any = ("x",), outputs: Any = ("y",), opset: int = 17, consts: Any = None, **a: Any) -> Any:
    made = helper.make_node(op, inputs, outputs, name=f"the {op}", **a)
    return model_of([made], X, ["y"], consts, opset, check=False)


def changed(change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    model = conv()
    change(model)
    return model


def tensor(dims: list[int], raw: bytes = b"", data_type: int = TensorProto.FLOAT, **fields: Any) -> onnx.TensorProto:
    return TensorProto(name="w", dims=dims, raw_data=raw, data_type=data_type, **fields)


def with_filter(weights: onnx.TensorProto) -> onnx.ModelProto:
    return changed(lambda m: m.graph.initializer[0].CopyFrom(weights))


def deep_branches(depth: int) -> onnx.ModelProto:
    leaf = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "leaf", [], [onnx.ValueInfoProto(name="r")])
    inner = leaf
    for i in range(depth):
        branch = helper.make_node("If", ["flag"], [f"o{i}"], then_branch=inner, else_branch=leaf)
        inner = helper.make_graph([branch], f"level {i}", [], [onnx.ValueInfoProto(name=f"o{i}")])
    top = helper.make_node("If", ["flag"], ["y"], name="top", then_branch=inner, else_branch=leaf)
    return model_of([top], {**X, "flag": (np.bool_, [])}, ["y"], check=False)


def branches_of(count: int, prefix: str = "b") -> onnx.ModelProto:
    outputs = [f"{prefix}{i or ''}" for i in range(count)]
    nodes = [helper.make_node("Relu", ["x"], [o]) for o in outputs]
    branch = helper.make_graph(nodes, "branch", [], [onnx.ValueInfoProto(name=o) for o in outputs])
    made = helper.make_node("If", ["flag"], ["y"], name="the If", then_branch=branch, else_branch=branch)
    return model_of([made], {**X, "flag": (np.bool_, [])}, ["y"], check=False)


def untyped_attribute(m: onnx.ModelProto) -> None:
    m.graph.node[0].attribute.append(AttributeProto(name="group", type=AttributeProto.UNDEFINED))


def twice(m: onnx.ModelProto) -> None:
    m.graph.node.append(helper.make_node("Relu", ["x"], ["y"], name="second"))


def cycle() -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["b"])]
    return model_of(nodes, X, ["b"], check=False)


def sequence_input(m: onnx.ModelProto) -> None:
    m.graph.input[0].type.CopyFrom(
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )


BOMB = np.array([2**40, 2**20], np.int64)
LSTM = {"w": normal(1, 8, 4), "r": normal(1, 8, 2)}

HOSTILE: dict[str, tuple[Any, str]] = {
    "empty file": (b"", "no graph"),
    "garbage": (b"\x89PNG\r\n" * 50, "not an ONNX model, or truncated"),
    "truncated": (conv().SerializeToString()[:-30], "truncated"),
    "no graph": (helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[]), "opset"),
    "unknown operator": (node("Frobnicate"), r"node 'the Frobnicate' .*no operator 'Frobnicate'"),
    "unsupported operator": (node("Det"), r"node 'the Det' .*'Det' is not supported"),
    "internal operator": (node("Silu"), r"node 'the Silu' .*no operator"),
    "operator newer than opset": (node("HardSwish", opset=13), r"'the HardSwish' .*opset 13"),
    "foreign domain": (node("Gelu", domain="com.microsoft"), r"'the Gelu' .*com.microsoft"),
    "old opset": (node("Relu", opset=0), "opset 0 is not supported, only 1 to"),
    "old operator": (node("Relu", opset=5), "'the Relu' .*Relu of opset 5 is not supported, only of 6"),
    "future opset": (changed(lambda m: setattr(m.opset_import[0], "version", 99)), "opset 99 is not supported"),
    "no opset": (changed(lambda m: m.ClearField("opset_import")), "no opset"),
    "functions": (changed(lambda m: m.functions.add(name="f")), "functions are not supported"),
    "missing value": (conv(inputs=("x", "nowhere")), r"'the conv' .*'nowhere' is neither"),
    "not in order": (cycle(), r"'first' .*'b' is produced only by a later node"),
    "defined twice": (changed(twice), r"'second' .*'y' is defined twice"),
    "output from nowhere": (changed(lambda m: setattr(m.graph.output[0], "name", "z")), "output 'z' is produced by no"),
    "no outputs": (changed(lambda m: m.graph.ClearField("output")), "no outputs"),
    "sparse": (changed(lambda m: m.graph.sparse_initializer.add()), "sparse"),
    "initializer twice": (changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])), "'w' .*twice"),
    "input twice": (changed(lambda m: m.graph.input.append(m.graph.input[0])), "'x' .*twice"),
    "string input": (
        model_of([helper.make_node("Identity", ["s"], ["y"])], {"s": (np.str_, [1])}, ["y"], check=False),
        "'s'.*STRING is not supported",
    ),
    "sequence input": (changed(sequence_input), "'x'.*only tensors"),
    "too few inputs": (conv(inputs=("x",)), r"'the conv' .*2 to 3 inputs .*got 1"),
    "too many inputs": (node("Relu", ("x", "x")), r"'the Relu' .*1 inputs .*got 2"),
    "skipped operand": (conv(inputs=("", "w")), r"'the conv' .*required input 'X' is missing"),
    "unknown attribute": (conv(stride=[1, 1]), r"'the conv' .*'stride' is unknown"),
    "wrong attribute type": (conv(strides=1.5), r"'the conv' .*'strides' must be INTS, not FLOAT"),
    "untyped attribute": (changed(untyped_attribute), r"'the conv' .*'group'"),
    "missing attribute": (node("Concat"), r"'the Concat' .*'axis' is required"),
    "data too short": (with_filter(tensor([4, 4, 3, 3], b"\0" * 10)), r"'w'.*needs 576 bytes, the file holds 10"),
    "data too long": (with_filter(tensor([1], b"\0" * 8)), "'w'.*needs 4 bytes"),
    "typed data too short": (with_filter(TensorProto(name="w", dims=[9], data_type=1, float_data=[1])), "'w'.*needs 9"),
    "huge tensor": (with_filter(tensor([2**40, 2**40])), "'w'.*needs"),
    "negative size": (with_filter(tensor([-1, 4])), "'w'.*negative size"),
    "unknown element type": (with_filter(tensor([1], b"\0", 77)), "'w'.*77 is not supported"),
    "string tensor": (with_filter(TensorProto(name="w", dims=[1], data_type=8, string_data=[b"a"])), "'w'.*STRING"),
    "external data without path": (
        with_filter(TensorProto(name="w", dims=[1], data_type=1, data_location=1)),
        "'w'.*from its path",
    ),
    "filter of two axes": (conv({"w": normal(4, 4)}), r"'the conv' .*\(4, 4\)"),
    "empty filter": (conv({"w": normal(4, 4, 0, 3)}), r"'the conv' .*empty"),
    "group 0": (conv(group=0), r"'the conv' .*group"),
    "group does not divide": (conv(group=3), r"'the conv' .*group=3"),
    "stride 0": (conv(strides=[0, 1]), r"'the conv' .*strides \(0, 1\)"),
    "negative dilation": (conv(dilations=[1, -1]), r"'the conv' .*dilations"),
    "pads of wrong length": (conv(pads=[1, 1]), r"'the conv' .*pads"),
    "kernel_shape differs": (conv(kernel_shape=[5, 5]), r"'the conv' .*kernel_shape \(5, 5\)"),
    "auto_pad unknown": (conv(auto_pad="SAME"), r"'the conv' .*'SAME'"),
    "bias of wrong length": (conv({"b": normal(5)}, ("x", "w", "b")), r"'the conv' .*\(4,\), got \(5,\)"),
    "bias of other type": (conv({"b": np.zeros(4)}, ("x", "w", "b")), r"'the conv' .*float64"),
    "pool without strides": (node("MaxPool", kernel_shape=[2, 2], strides=[2]), "'the MaxPool' .*strides"),
    "pool indices": (node("MaxPool", outputs=("y", "i"), kernel_shape=[2, 2]), "'the MaxPool' .*indices"),
    "training in opset 6": (node("Dropout", opset=6), "'the Dropout' .*is_test=0"),
    "broadcast in opset 6": (node("Add", ("x", "x"), opset=6, broadcast=1), "'the Add' .*broadcast"),
    "training": (
        node("BatchNormalization", ("x", *"abcd"), consts=dict.fromkeys("abcd", normal(4)), training_mode=1),
        "'the BatchNormalization'.*training",
    ),
    "antialias": (
        node("Resize", ("x", "", "s"), opset=18, consts={"s": np.ones(4, np.float32)}, antialias=1),
        "'the Resize' .*antialias",
    ),
    "lrn of size 0": (node("LRN", size=0), "'the LRN' .*size"),
    "lstm direction": (
        node("LSTM", ("x", "w", "r"), consts=LSTM, hidden_size=2, direction="sideways"),
        "'the LSTM' .*sideways",
    ),
    "lstm hidden size": (node("LSTM", ("x", "w", "r"), consts=LSTM, hidden_size=3), "'the LSTM' .*hidden_size 3"),
    "memory bomb": (node("ConstantOfShape", ("s",), consts={"s": BOMB}), "'the ConstantOfShape' .*elements"),
    "expanding bomb": (node("Expand", ("c", "s"), consts={"c": normal(1), "s": BOMB}), "'the Expand' .*elements"),
    "constant folding fails": (
        node("Reshape", ("c", "s"), consts={"c": normal(6), "s": np.array([4])}),
        "'the Reshape' .*cannot reshape",
    ),
    "constant without value": (node("Constant", ()), "'the Constant' .*exactly one value"),
    "branches too deep": (deep_branches(20), "nested deeper than"),
    "branch shadows a value": (branches_of(1, "x"), "'x' is defined twice"),
    "branch outputs": (branches_of(2), "'the If' .*1 outputs"),
}


@pytest.mark.parametrize(("source", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_file(source: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(source)


@pytest.mark.parametrize("cut", range(0, 700, 13))
def test_truncated_anywhere(cut: int) -> None:
    data = conv(pads=[1, 1, 1, 1]).SerializeToString()
    with pytest.raises(ModelError):
        load(data[: min(cut, len(data) - 1)])


def test_flipped_bytes_never_escape() -> None:
    """Whatever is broken in a file: it loads, or the error is a ModelError."""
    data = bytearray(conv({"w": normal(1, 4, 1, 1)}, pads=[1, 1, 1, 1]).SerializeToString())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] = rng.integers(0, 256)
        try:
            load(bytes(broken))
        except ModelError:
            refused += 1
    assert refused > 1000


def test_not_a_model() -> None:
    with pytest.raises(TypeError, match=r"path, bytes or an onnx\.ModelProto, got int"):
        load(3)
    with pytest.raises(FileNotFoundError):
        load("nowhere.onnx")


def external(folder: Path, location: str, **entries: Any) -> Path:
    weights = TensorProto(name="w", dims=W.shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        weights.external_data.add(key=key, value=str(value))
    path = folder / "model.onnx"
    path.write_bytes(with_filter(weights).SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(b"\1" * 8 + W.tobytes())
    x = normal(1, 4, 6, 6)
    found = load(external(tmp_path, "weights/w.bin", offset=8, length=W.nbytes))(x)["y"]
    np.testing.assert_array_equal(found, load(conv())(x)["y"])


def test_external_data_stays_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    outside = tmp_path / "w.bin"
    outside.write_bytes(W.tobytes())
    (folder / "link.bin").symlink_to(outside)
    for location in ("../w.bin", str(outside), "link.bin", "a/../../w.bin"):
        with pytest.raises(ModelError, match=r"'w'.*outside the model's folder"):
            load(external(folder, location))
    for location in ("nothing.bin", ".", "", "bad\0name"):
        with pytest.raises(ModelError, match="initializer 'w'"):
            load(external(folder, location))


def test_external_data_of_wrong_size(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    for entries in ({"offset": 8}, {"offset": -4}, {"length": 12}, {"offset": "x"}, {"length": 10**15}):
        with pytest.raises(ModelError, match="initializer 'w'"):
            load(external(tmp_path, "w.bin", **entries))


# Calls


@pytest.fixture(scope="module")
def two_inputs() -> Model:
    add = helper.make_node("Add", ["a", "b"], ["y"])
    return load(model_of([add], {"a": (np.float32, ["n", 3]), "b": (np.float32, ["n", 3])}, ["y"]))


A = normal(2, 3)


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        ({"a": A}, ModelError, r"input 'b': float32 \(n, 3\) is missing"),
        ({"a": A, "b": A, "c": A}, ModelError, "no input 'c'; its inputs are 'a'.*'b'"),
        (A, ModelError, "2 inputs .*pass a dict"),
        ({"a": A, "b": A.astype(float)}, ModelTypeError, r"input 'b'.*float64; array.astype\('float32'\)"),
        ({"a": A, "b": normal(2, 4)}, ModelError, r"input 'b'.*\(2, 4\): axis 1 must be 3"),
        ({"a": A, "b": normal(3)}, ModelError, r"input 'b'.*\(3,\)"),
        ({"a": A, "b": normal(5, 3)}, ModelError, r"input 'b'.*'n' is 2 in input 'a'"),
        ({"a": A, "b": [[1, 2, 3]]}, ModelTypeError, "input 'b'.*list"),
        ({"a": A, "b": None}, ModelTypeError, "input 'b'.*NoneType"),
    ],
)
def test_wrong_call(two_inputs: Model, inputs: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        two_inputs(inputs)


def test_errors_are_value_and_type_errors(two_inputs: Model) -> None:
    with pytest.raises(ValueError):
        two_inputs({})
    with pytest.raises(TypeError):
        two_inputs({"a": A, "b": A.astype(np.int32)})


def test_channels_that_do_not_fit_name_the_node() -> None:
    model = conv({"w": normal(4, 5, 3, 3)})
    with pytest.raises(ModelError, match=r"node 'the conv' .*inputs: 'x' \(1, 4, 6, 6\) float32, 'w' \(4, 5, 3, 3\)"):
        load(model)(normal(1, 4, 6, 6))


def test_a_failing_replay_names_the_node() -> None:
    gather = helper.make_node("Gather", ["x", "i"], ["y"], name="pick")
    runner = load(model_of([gather], {"x": (np.float32, [4]), "i": (np.int64, [1])}, ["y"]))
    x = normal(4)
    runner({"x": x, "i": np.array([3])})
    for _ in range(2):
        with pytest.raises(ModelError, match=r"node 'pick' .*4 to 4 are out of range"):
            runner({"x": x, "i": np.array([4])})


def test_bad_profile_count() -> None:
    with pytest.raises(ValueError, match="repeat must be at least 1, got 0"):
        load(conv()).profile(normal(1, 4, 6, 6), repeat=0)


def test_initializers_are_not_inputs() -> None:
    model = conv()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))
    runner = load(model)
    assert [p.name for p in runner.inputs] == ["x"]
    assert numpy_helper.to_array(model.graph.initializer[0]).shape == W.shape
    with pytest.raises(ModelError, match="no input 'w'"):
        runner({"x": normal(1, 4, 6, 6), "w": W})
