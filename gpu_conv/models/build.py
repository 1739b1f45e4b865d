"""ONNX graphs of MobileNetV2 and EfficientNet-Lite0 from their PyTorch state dictionaries.

Batch normalisation is folded into the convolutions in float64 and rounded once to float32. Filter sizes and channel
counts come from the weights; only what they cannot tell, repeats and strides, is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Pair = tuple[str, str]  # names of a convolution and of its batch normalisation

SIZE = 224
OPSET, IR_VERSION = 17, 9  # old enough for every onnxruntime that runs on a supported Python

# Inverted residuals of each stage: how many, and the stride of the first. The first stage has no expansion.
_MOBILENET_V2 = ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))
_EFFICIENTNET_LITE0 = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))


def mobilenet_v2(state: Mapping[str, Array]) -> onnx.ModelProto:
    """MobileNetV2 with torchvision's names: ``input`` (n, 3, 224, 224) to ``logits`` (n, 1000)."""
    net = _Network(state, epsilon=1e-5, pads=lambda kernel, stride: [kernel // 2] * 4)
    x = net.conv("input", ("features.0.0", "features.0.1"), stride=2)
    for index, stride in _blocks(_MOBILENET_V2, first=1):
        block = f"features.{index}.conv"
        inner = [(f"{block}.{i}.0", f"{block}.{i}.1") for i in range(1 if index == 1 else 2)]
        x = net.inverted_residual(x, [*inner, (f"{block}.{len(inner)}", f"{block}.{len(inner) + 1}")], stride)
    x = net.conv(x, ("features.18.0", "features.18.1"))
    return net.classifier(x, "classifier.1", "mobilenet_v2")


def efficientnet_lite0(state: Mapping[str, Array]) -> onnx.ModelProto:
    """EfficientNet-Lite0 with TensorFlow's "same" padding: ``input`` (n, 3, 224, 224) to ``logits`` (n, 1000)."""
    net = _Network(state, epsilon=1e-3, pads=_same)
    x = net.conv("input", ("_conv_stem", "_bn0"), stride=2)
    for index, stride in _blocks(_EFFICIENTNET_LITE0, first=0):
        names = ("_expand_conv", "_depthwise_conv", "_project_conv")[0 if index else 1 :]
        pairs = [(f"_blocks.{index}.{name}", f"_blocks.{index}._bn{i}") for i, name in enumerate(names, 3 - len(names))]
        x = net.inverted_residual(x, pairs, stride)
    x = net.conv(x, ("_conv_head", "_bn1"))
    return net.classifier(x, "_fc", "efficientnet_lite0")


def _blocks(stages: Sequence[tuple[int, int]], first: int) -> Iterator[tuple[int, int]]:
    """Index and stride of every block."""
    strides = [stride if i == 0 else 1 for repeats, stride in stages for i in range(repeats)]
    yield from enumerate(strides, first)


def _same(kernel: int, stride: int) -> list[int]:
    """The odd pixel is on the right. Holds because every map that is halved here has an even side."""
    total = kernel - stride
    return [total // 2] * 2 + [total - total // 2] * 2


class _Network:
    """A graph under construction: nodes and constants in the order of the forward pass."""

    def __init__(self, state: Mapping[str, Array], epsilon: float, pads: Callable[[int, int], list[int]]) -> None:
        self.state = state
        self.epsilon = epsilon
        self.pads = pads
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.clip = [self.constant("zero", np.array(0)), self.constant("six", np.array(6))]

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = np.asarray(value, np.float32, order="C")
        return name

    def node(self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output or name], name=name, **attributes))
        return output or name

    def conv(self, x: str, pair: Pair, stride: int = 1, *, relu6: bool = True) -> str:
        """Convolution with its normalisation folded in; depthwise if its filters have one input channel."""
        conv, norm = pair
        w = self.state[f"{conv}.weight"]
        parts = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, variance = (self.state[f"{norm}.{part}"].astype(np.float64) for part in parts)
        scale = gamma / np.sqrt(variance + self.epsilon)
        weight = self.constant(f"{conv}.weight", w * scale[:, None, None, None])
        bias = self.constant(f"{conv}.bias", beta - mean * scale)
        kernel = w.shape[2]
        y = self.node(
            "Conv",
            [x, weight, bias],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=self.pads(kernel, stride),
            group=w.shape[0] if w.shape[1] == 1 else 1,
        )
        return self.node("Clip", [y, *self.clip]) if relu6 else y

    def inverted_residual(self, x: str, pairs: Sequence[Pair], stride: int) -> str:
        """Expand (absent in the first stage), depthwise, project; plus the input where the shapes allow it."""
        *expand, depthwise, project = pairs
        y = x
        for pair in expand:
            y = self.conv(y, pair)
        y = self.conv(y, depthwise, stride)
        y = self.conv(y, project, relu6=False)
        channels_in = self.state[f"{pairs[0][0]}.weight"].shape[1 if expand else 0]
        channels_out = self.state[f"{project[0]}.weight"].shape[0]
        return self.node("Add", [x, y]) if stride == 1 and channels_in == channels_out else y

    def classifier(self, x: str, dense: str, name: str) -> onnx.ModelProto:
        """Pooling and the dense layer end the graph; the model is checked, its batch size is open."""
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])], axis=1)
        weights = [self.constant(f"{dense}.{part}", self.state[f"{dense}.{part}"]) for part in ("weight", "bias")]
        self.node("Gemm", [x, *weights], output="logits", transB=1)
        classes = len(self.constants[weights[1]])
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])],
            [numpy_helper.from_array(value, key) for key, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model
