"""For the tests of the ONNX runner: models of one node, small networks with random weights, and what to compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from gpu_conv.onnx import Model

Array = np.ndarray[Any, Any]

OPSET = 17
IR_VERSION = 8


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Sequence[Any] | None]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    opset: int = OPSET,
    check: bool = True,
) -> onnx.ModelProto:
    """A model. ``inputs`` are (dtype, shape) by name; shapes may hold names and None."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(d)), s)
            for n, (d, s) in inputs.items()
        ],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(IR_VERSION, 8))
    if check:  # gives the outputs their types, which onnxruntime wants
        model = onnx.shape_inference.infer_shapes(model)
        for output in model.graph.output:
            if not output.type.tensor_type.elem_type:
                output.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def one_node(
    op: str,
    inputs: Sequence[Array | None],
    constants: Mapping[int, Array] | None = None,
    outputs: int = 1,
    opset: int = OPSET,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node and its inputs; ``constants`` are the operands that are initializers, by position."""
    constants = dict(constants or {})
    count = max([len(inputs), *(i + 1 for i in constants)])
    slots: list[Array | None] = [*inputs, *[None] * (count - len(inputs))]
    names = [f"i{i}" if i in constants or slots[i] is not None else "" for i in range(count)]
    node = helper.make_node(op, names, [f"o{i}" for i in range(outputs)], name="tested", **attributes)
    feeds = {f"i{i}": a for i, a in enumerate(slots) if a is not None and i not in constants}
    ports = {
        n: (a.dtype, a.shape if a.dtype.kind in "iub" else [f"{n}_{k}" for k in range(a.ndim)])
        for n, a in feeds.items()
    }
    initial = {f"i{i}": a for i, a in constants.items()}
    return model_of([node], ports, node.output, initial, opset), feeds


def onnxruntime_session(model: onnx.ModelProto | str | Path, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    source = str(model) if isinstance(model, (str, Path)) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def expected(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What onnxruntime computes; for an opset that it does not support yet, what onnx's own reference does."""
    names = [o.name for o in model.graph.output]
    try:
        run = onnxruntime_session(model).run
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
        if "is under development" not in str(error):
            raise
        run = ReferenceEvaluator(model).run
    return dict(zip(names, run(None, dict(feeds)), strict=True))


class Builder:
    """Nodes and initializers, one call per layer."""

    def __init__(self, seed: int = 0, opset: int = OPSET) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def weight(self, *shape: int, scale: float | None = None) -> str:
        fan = float(np.prod(shape[1:])) if len(shape) > 1 else 1.0
        values = self.rng.standard_normal(shape) * (np.sqrt(2 / fan) if scale is None else scale)
        return self.constant(values.astype(np.float32))

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return name

    def conv_bn(
        self,
        x: str,
        shape: tuple[int, ...],
        bn: bool = True,
        act: str | None = "relu6",
        gain: float = 1.0,
        **attributes: Any,
    ) -> str:
        """A convolution with filter ``shape``, then batch normalisation (times ``gain``) or a bias, an activation."""
        out = shape[0]
        if bn:
            x = self.node("Conv", x, self.weight(*shape), **attributes)
            scale, bias, mean = (
                self.rng.uniform(a, b, out).astype(np.float32) for a, b in ((0.5, 1.5), (-1, 1), (-1, 1))
            )
            scale, bias = scale * np.float32(gain), bias * np.float32(gain)
            variance = self.rng.uniform(0.5, 2, out).astype(np.float32)
            operands = [self.constant(v) for v in (scale, bias, mean, variance)]
            x = self.node("BatchNormalization", x, *operands, epsilon=1e-3)
        else:
            x = self.node("Conv", x, self.weight(*shape), self.weight(out, scale=0.1), **attributes)
        if act == "relu6":
            return self.node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))
        return x if act is None else ACTIVATIONS[act](self, x)

    def model(self, inputs: Mapping[str, tuple[Any, Sequence[Any]]], *outputs: str) -> onnx.ModelProto:
        return model_of(self.nodes, inputs, outputs, self.constants, self.opset)


ACTIVATIONS: dict[str, Callable[[Builder, str], str]] = {
    "relu": lambda b, x: b.node("Relu", x),
    "sigmoid": lambda b, x: b.node("Sigmoid", x),
    "silu": lambda b, x: b.node("Mul", x, b.node("Sigmoid", x)),
    "hard_swish": lambda b, x: b.node("HardSwish", x),
    "leaky_relu": lambda b, x: b.node("LeakyRelu", x, alpha=0.1),
    "hard_sigmoid": lambda b, x: b.node("HardSigmoid", x, alpha=1 / 6, beta=0.5),
}


def _same(size: int, k: int, stride: int) -> tuple[list[int], int]:
    """TensorFlow's padding: the odd element at the end."""
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + k - size)
    return [total // 2] * 2 + [total - total // 2] * 2, out


# expansion, channels, repeats, stride, filter
MOBILENET_V2 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)
EFFICIENTNET_LITE0 = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def inverted_residuals(
    stages: Sequence[tuple[int, ...]], size: int = 224, bn: bool = False, same: bool = False, classes: int = 1000
) -> onnx.ModelProto:
    """MobileNetV2 or EfficientNet-Lite0 with random weights; input ``[n, 3, size, size]``."""
    b = Builder()

    def conv(x: str, out: int, per_group: int, k: int, stride: int, groups: int, act: str | None = "relu6") -> str:
        nonlocal size
        pads, after = _same(size, k, stride) if same else ([k // 2] * 4, (size - 1) // stride + 1)
        size = after
        options = {"kernel_shape": [k, k], "strides": [stride] * 2, "pads": pads, "group": groups}
        return b.conv_bn(x, (out, per_group, k, k), bn, act, **options)

    first = size
    x = conv("x", 32, 3, 3, 2, 1)
    channels = 32
    for expansion, out, repeats, stride, k in stages:
        for i in range(repeats):
            step = stride if i == 0 else 1
            hidden = channels * expansion
            y = conv(x, hidden, channels, 1, 1, 1) if expansion > 1 else x
            y = conv(y, hidden, 1, k, step, hidden)
            y = conv(y, out, hidden, 1, 1, 1, None)
            x = b.node("Add", x, y) if step == 1 and channels == out else y
            channels = out
    x = conv(x, 1280, channels, 1, 1, 1)
    x = b.node("Flatten", b.node("GlobalAveragePool", x), axis=1)
    x = b.node("Gemm", x, b.weight(classes, 1280), b.weight(classes, scale=0.1), transB=1)
    return b.model({"x": (np.float32, ["n", 3, first, first])}, x)


def light_models() -> list[Path]:
    """The networks without weights that the onnx wheel carries."""
    return sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("light_*.onnx"))


def with_random_weights(path: Path, seed: int = 0) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A light model with its constant weights replaced by random ones, without its last softmax, and an input."""
    rng = np.random.default_rng(seed)
    block = rng.standard_normal(1_000_003).astype(np.float32)  # repeated: VGG has 143 million weights
    model = onnx.load(path)
    graph = model.graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    variances = {n.input[4] for n in graph.node if n.op_type == "BatchNormalization"}
    scales = {n.input[1] for n in graph.node if n.op_type == "BatchNormalization"}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape, name = tuple(int(n) for n in values[node.input[0]]), node.output[0]
        fan = float(np.prod(shape[1:])) if len(shape) > 1 else 100.0
        random = np.resize(block, shape)
        random *= np.float32(np.sqrt(2 / fan))
        if name in variances or name in scales:
            random = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(random, name))
    if kept[-1].op_type == "Softmax":
        graph.output[0].name = kept.pop().input[0]
    del graph.node[:]
    graph.node.extend(kept)
    known = {t.name for t in graph.initializer}
    feeds = {
        i.name: rng.standard_normal([d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in graph.input
        if i.name not in known
    }
    return model, feeds


TOLERANCE = 2e-4  # of max|y|, over a whole network


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
