"""The mobile networks as ONNX graphs with seeded random weights, at any resolution and width.

    python benchmarks/networks.py                       # all, 224x224, NumPy against onnxruntime
    python benchmarks/networks.py mobilenet_v2 --size 64 --device EMULATOR --width 0.5

Layers, channels and strides are those of the papers (MobileNetV3 and ShuffleNetV2 as torchvision has them). Batch
normalisation stands beside its convolution, as training leaves it, so the runner has to fold it. Random weights make no
classifier, but the same sums of the same sizes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parent.parent))

import gpu_conv.onnx
from tests.graph_models import ACTIVATIONS, EFFICIENTNET_LITE0, MOBILENET_V2, Builder, onnxruntime_session

CLASSES = 1000


@dataclass(frozen=True)
class Map:
    """A feature map: value name, channels, side."""

    name: str
    channels: int
    side: int


class Net(Builder):
    """A network under construction; ``width`` scales the channels that ``self.c`` is asked for."""

    def __init__(self, size: int, width: float, same: bool = False) -> None:
        super().__init__(seed=7)
        self.size = size
        self.width = width
        self.same = same
        self.input = Map("x", 3, size)

    def c(self, channels: float, unit: int = 8) -> int:
        """Channels at this width: the multiple of ``unit`` next to them, never a tenth less."""
        wanted = channels * self.width
        rounded = max(unit, int(wanted + unit / 2) // unit * unit)
        return rounded if rounded >= 0.9 * wanted else rounded + unit

    def map(self, op: str, x: Map, *operands: str, channels: int | None = None, **attributes: Any) -> Map:
        """A node that keeps the side."""
        return Map(self.node(op, x.name, *operands, **attributes), channels or x.channels, x.side)

    def act(self, x: Map, name: str | None) -> Map:
        return Map(ACTIVATIONS[name](self, x.name), x.channels, x.side) if name else x

    def conv(
        self,
        x: Map,
        out: int,
        k: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: str | None = None,
        bn: bool = True,
        gain: float = 1.0,
    ) -> Map:
        """A convolution that keeps the side (divides it by the stride), normalised (to ``gain``) and activated."""
        pads: dict[str, Any] = {"auto_pad": "SAME_UPPER"} if self.same else {"pads": [k // 2] * 4}
        options = {"kernel_shape": [k, k], "strides": [stride] * 2, "group": groups, **pads}
        name = self.conv_bn(x.name, (out, x.channels // groups, k, k), bn, act, gain, **options)
        return Map(name, out, -(-x.side // stride))

    def depthwise(self, x: Map, k: int, stride: int = 1, act: str | None = None) -> Map:
        return self.conv(x, x.channels, k, stride, x.channels, act)

    def excite(self, x: Map, squeezed: int, act: str, gate: str) -> Map:
        """Squeeze and excitation: one factor per channel."""
        pooled = Map(self.node("GlobalAveragePool", x.name), x.channels, 1)
        inner = self.conv(pooled, squeezed, act=act, bn=False)
        factors = self.conv(inner, x.channels, act=gate, bn=False)
        return self.map("Mul", x, factors.name)

    def max_pool(self, x: Map) -> Map:
        name = self.node("MaxPool", x.name, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        return Map(name, x.channels, (x.side - 1) // 2 + 1)

    def shuffle(self, x: Map, groups: int) -> Map:
        """Interleave the groups of channels, spelled out as exporters do."""
        split, whole = (-1, groups, x.channels // groups, x.side, x.side), (-1, x.channels, x.side, x.side)
        y = self.node("Reshape", x.name, self.constant(np.array(split)))
        y = self.node("Transpose", y, perm=[0, 2, 1, 3, 4])
        return Map(self.node("Reshape", y, self.constant(np.array(whole))), x.channels, x.side)

    def dense(self, x: str, features: int, out: int) -> str:
        return self.node("Gemm", x, self.weight(out, features), self.weight(out, scale=0.1), transB=1)

    def classifier(self, x: Map, hidden: int = 0) -> onnx.ModelProto:
        """Pooling, perhaps a hidden layer, the classes."""
        y = self.node("Flatten", self.node("GlobalAveragePool", x.name), axis=1)
        features = x.channels
        if hidden:
            y, features = self.node("HardSwish", self.dense(y, features, hidden)), hidden
        y = self.dense(y, features, CLASSES)
        return self.model({"x": (np.float32, ["n", 3, self.size, self.size])}, y)


def mobilenet_v1(size: int = 224, width: float = 1.0) -> onnx.ModelProto:
    """Howard et al. 2017, table 1."""
    net = Net(size, width)
    x = net.conv(net.input, net.c(32), 3, 2, act="relu")
    strides = {64: 1, 128: 2, 256: 2, 512: 2, 1024: 2}
    for channels, repeats in ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2)):
        for i in range(repeats):
            x = net.depthwise(x, 3, strides[channels] if i == 0 else 1, act="relu")
            x = net.conv(x, net.c(channels), act="relu")
    return net.classifier(x)


def _inverted_residuals(net: Net, stages: Sequence[tuple[int, ...]], act: str, excite: bool = False) -> onnx.ModelProto:
    """Stages of (expansion, channels, repeats, stride, filter): MobileNetV2 and what came of it."""
    x = net.conv(net.input, net.c(32), 3, 2, act=act)
    for expansion, channels, repeats, stride, k in stages:
        for i in range(repeats):
            y = net.conv(x, x.channels * expansion, act=act) if expansion > 1 else x
            y = net.depthwise(y, k, stride if i == 0 else 1, act=act)
            if excite:
                y = net.excite(y, max(1, x.channels // 4), act, "sigmoid")
            y = net.conv(y, net.c(channels))
            x = net.map("Add", x, y.name) if y.channels == x.channels and y.side == x.side else y
    return net.classifier(net.conv(x, max(1280, net.c(1280)), act=act))


def mobilenet_v2(size: int = 224, width: float = 1.0) -> onnx.ModelProto:
    """Sandler et al. 2018, table 2."""
    return _inverted_residuals(Net(size, width), MOBILENET_V2, "relu6")


def efficientnet_lite0(size: int = 224, width: float = 1.0) -> onnx.ModelProto:
    """EfficientNet without gates, TensorFlow's padding."""
    return _inverted_residuals(Net(size, width, same=True), EFFICIENTNET_LITE0, "relu6")


def efficientnet_b0(size: int = 224, width: float = 1.0) -> onnx.ModelProto:
    """Tan and Le 2019, table 1, TensorFlow's padding."""
    return _inverted_residuals(Net(size, width, same=True), EFFICIENTNET_LITE0, "silu", excite=True)


# filter, expanded channels, channels, squeeze and excitation, hard swish, stride
V3_LARGE = (
    (3, 16, 16, 0, 0, 1),
    (3, 64, 24, 0, 0, 2),
    (3, 72, 24, 0, 0, 1),
    (5, 72, 40, 1, 0, 2),
    (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1),
    (3, 240, 80, 0, 1, 2),
    (3, 200, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1),
    (3, 672, 112, 1, 1, 1),
    (5, 672, 160, 1, 1, 2),
    (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)
V3_SMALL = (
    (3, 16, 16, 1, 0, 2),
    (3, 72, 24, 0, 0, 2),
    (3, 88, 24, 0, 0, 1),
    (5, 96, 40, 1, 1, 2),
    (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1),
    (5, 120, 48, 1, 1, 1),
    (5, 144, 48, 1, 1, 1),
    (5, 288, 96, 1, 1, 2),
    (5, 576, 96, 1, 1, 1),
    (5, 576, 96, 1, 1, 1),
)


def _mobilenet_v3(net: Net, blocks: Sequence[tuple[int, ...]], hidden: int) -> onnx.ModelProto:
    x = net.conv(net.input, net.c(16), 3, 2, act="hard_swish")
    for k, expanded, channels, excite, hard, stride in blocks:
        act = "hard_swish" if hard else "relu"
        y = net.conv(x, net.c(expanded), act=act) if net.c(expanded) != x.channels else x
        y = net.depthwise(y, k, stride, act)
        if excite:
            y = net.excite(y, net.c(y.channels / 4 / net.width), "relu", "hard_sigmoid")
        added = net.c(channels) == x.channels and stride == 1
        # As training leaves what is added to a sum: without it, float16 noise in the picture changes scores by 4 %.
        y = net.conv(y, net.c(channels), gain=0.25 if added else 1.0)
        x = net.map("Add", x, y.name) if added else y
    return net.classifier(net.conv(x, 6 * x.channels, act="hard_swish"), hidden)


def mobilenet_v3_large(size: int = 224, width: float = 1.0) -> onnx.ModelProto:
    """Howard et al. 2019, table 1."""
    return _mobilenet_v3(Net(size, width), V3_LARGE, 1280)


def mobilenet_v3_small(size: int = 224, width: float = 1.0) -> onnx.ModelProto:
    """Howard et al. 2019, table 2."""
    return _mobilenet_v3(Net(size, width), V3_SMALL, 1024)


def shufflenet_v1(size: int = 224, width: float = 1.0, groups: int = 3) -> onnx.ModelProto:
    """Zhang et al. 2017, table 1, three groups."""
    net = Net(size, width)
    x = net.max_pool(net.conv(net.input, 24, 3, 2, act="relu"))
    for channels, repeats in ((240, 4), (480, 8), (960, 4)):
        out = net.c(channels, 4 * groups)
        for i in range(repeats):
            stride, into = (2, out - x.channels) if i == 0 else (1, out)
            first = 1 if x.channels == 24 else groups
            y = net.conv(x, out // 4, groups=first, act="relu")
            y = net.depthwise(net.shuffle(y, groups), 3, stride)
            # As training leaves what is added to a sum: without it the values grow to 69893, beyond float16.
            y = net.conv(y, into, groups=groups, gain=0.25)
            if stride == 2:
                pooled = net.node("AveragePool", x.name, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
                y = Map(net.node("Concat", pooled, y.name, axis=1), out, y.side)
            else:
                y = net.map("Add", x, y.name)
            x = net.act(y, "relu")
    return net.classifier(x)


def shufflenet_v2(size: int = 224, width: float = 1.0) -> onnx.ModelProto:
    """Ma et al. 2018, table 5, 1x."""
    net = Net(size, width)
    x = net.max_pool(net.conv(net.input, 24, 3, 2, act="relu"))
    for channels, repeats in ((116, 4), (232, 8), (464, 4)):
        half = net.c(channels / 2, 1)
        for i in range(repeats):
            if i == 0:
                left = net.conv(net.depthwise(x, 3, 2), half, act="relu")
                right = x
            else:
                left_name, right_name = f"left of {x.name}", f"right of {x.name}"
                net.nodes.append(onnx.helper.make_node("Split", [x.name], [left_name, right_name], axis=1))
                left, right = Map(left_name, half, x.side), Map(right_name, half, x.side)
            right = net.conv(right, half, act="relu")
            right = net.conv(net.depthwise(right, 3, 2 if i == 0 else 1), half, act="relu")
            joined = Map(net.node("Concat", left.name, right.name, axis=1), 2 * half, right.side)
            x = net.shuffle(joined, 2)
    return net.classifier(net.conv(x, 1024, act="relu"))


def mobileone_s0(size: int = 224, width: float = 1.0, branches: int = 4) -> onnx.ModelProto:
    """Vasu et al. 2022, table 2, as trained: layers are sums of ``branches`` convolutions, a 1x1 one and the input."""
    net = Net(size, width)

    def layer(x: Map, out: int, k: int, stride: int, depthwise: bool, count: int) -> Map:
        groups = x.channels if depthwise else 1
        parts = [net.conv(x, out, k, stride, groups) for _ in range(count)]
        if k > 1:
            parts.append(net.conv(x, out, 1, stride, groups))
        if out == x.channels and stride == 1:
            scale, shift, mean, variance = (
                net.constant(net.rng.uniform(0.5, 1.5, out).astype(np.float32)) for _ in "sbmv"
            )
            parts.append(net.map("BatchNormalization", x, scale, shift, mean, variance))
        total = parts[0]
        for part in parts[1:]:
            total = net.map("Add", total, part.name)
        return net.act(total, "relu")

    x = layer(net.input, net.c(48), 3, 2, False, 1)
    for channels, repeats in ((48, 2), (128, 8), (256, 10), (1024, 1)):
        for i in range(repeats):
            x = layer(x, x.channels, 3, 2 if i == 0 else 1, True, branches)
            x = layer(x, net.c(channels), 1, 1, False, branches)
    return net.classifier(x)


def convnext_t(size: int = 224, width: float = 1.0) -> onnx.ModelProto:
    """Liu et al. 2022: 7x7 depthwise, then a normalised perceptron per pixel, its matrices as PyTorch exports them."""
    net = Net(size, width)

    def norm(name: str, channels: int) -> str:
        return net.node("LayerNormalization", name, net.weight(channels, scale=1.0), net.weight(channels), axis=-1)

    def channels_last(x: Map) -> str:
        return net.node("Transpose", x.name, perm=[0, 2, 3, 1])

    def channels_first(name: str, x: Map) -> Map:
        return Map(net.node("Transpose", name, perm=[0, 3, 1, 2]), x.channels, x.side)

    def down(x: Map, out: int, k: int) -> Map:
        w, b = net.weight(out, x.channels, k, k), net.weight(out, scale=0.1)
        return Map(net.node("Conv", x.name, w, b, kernel_shape=[k, k], strides=[k, k]), out, x.side // k)

    def matrix(name: str, rows: int, columns: int) -> str:
        product = net.node("MatMul", name, net.weight(rows, columns, scale=rows**-0.5))
        return net.node("Add", net.weight(columns, scale=0.1), product)

    x = net.input
    for stage, (channels, blocks) in enumerate(((96, 3), (192, 3), (384, 9), (768, 3))):
        if stage:
            x = channels_first(norm(channels_last(x), x.channels), x)
        x = down(x, net.c(channels), 2 if stage else 4)
        if not stage:
            x = channels_first(norm(channels_last(x), x.channels), x)
        for _ in range(blocks):
            y = net.conv(x, x.channels, 7, groups=x.channels, bn=False)
            inner = matrix(norm(channels_last(y), y.channels), y.channels, 4 * y.channels)
            half = net.node("Mul", inner, net.constant(np.float32(0.5)))
            erf = net.node("Erf", net.node("Div", inner, net.constant(np.float32(2**0.5))))
            gelu = net.node("Mul", half, net.node("Add", erf, net.constant(np.float32(1))))
            scaled = net.node("Mul", net.weight(y.channels, scale=0.3), matrix(gelu, 4 * y.channels, y.channels))
            x = net.map("Add", x, channels_first(scaled, y).name)
    return net.classifier(x)


NETWORKS: dict[str, Callable[..., onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        mobilenet_v1,
        mobilenet_v2,
        mobilenet_v3_large,
        mobilenet_v3_small,
        efficientnet_b0,
        efficientnet_lite0,
        shufflenet_v1,
        shufflenet_v2,
        mobileone_s0,
        convnext_t,
    )
}


def picture(size: int, batch: int = 1) -> Any:
    """An input: random, seeded."""
    return np.random.default_rng(size).standard_normal((batch, 3, size, size)).astype(np.float32)


def compare(name: str, size: int, device: str, width: float = 1.0, batch: int = 1) -> dict[str, float]:
    """Our answer and onnxruntime's: largest difference over the largest value, and the seconds of the second call."""
    model = NETWORKS[name](size, width)
    x = picture(size, batch)
    session = onnxruntime_session(model)
    prepared = gpu_conv.onnx.backend.prepare(model, device)
    result: dict[str, float] = {}
    for _ in range(1 if device == "EMULATOR" else 2):
        start = time.perf_counter()
        (wanted,) = session.run(None, {"x": x})
        middle = time.perf_counter()
        (found,) = prepared.run(x)
        result = {"onnxruntime_s": middle - start, "s": time.perf_counter() - middle}
    assert np.isfinite(wanted).all() and wanted.std() > 0
    return {"error": float(np.abs(found - wanted).max() / np.abs(wanted).max()), **result}


def main() -> int:
    """Every named network; status 1 if one differs by more than 2e-4 of its largest output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="default: all")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--device", default="CPU", help="CPU, EMULATOR, CUDA")
    arguments = parser.parse_args()
    unknown = set(arguments.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    worst = 0.0
    for name in arguments.networks:
        row = compare(name, arguments.size, arguments.device, arguments.width)
        worst = max(worst, row["error"])
        print(
            f"{name:<20} {arguments.size:>4}  {row['error']:.1e} of max|y|  {row['s'] * 1e3:8.1f} ms  "
            f"(onnxruntime, 1 thread: {row['onnxruntime_s'] * 1e3:.1f} ms)",
            flush=True,
        )
    return int(worst > 2e-4)


if __name__ == "__main__":
    sys.exit(main())
