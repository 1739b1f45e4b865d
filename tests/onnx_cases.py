"""Cases of single operators for the ONNX runner: inputs, attributes, opsets. ``tests/test_onnx_ops.py`` runs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from .graph_models import normal

F, INT = np.float32, np.int64

CASES: list[Any] = []


def case(
    name: str, op: str, *inputs: Any, consts: Any = None, outputs: int = 1, opset: int = 17, **attributes: Any
) -> None:
    label = f"{op}-{name}-{opset}" if name else f"{op}-{opset}"
    CASES.append(pytest.param(op, inputs, consts, outputs, opset, attributes, id=label))


def ints(*values: int) -> Any:
    return np.array(values, INT)


x4 = normal(2, 6, 9, 8)
x3 = normal(2, 5, 13)
x2 = normal(4, 7)
positive = np.abs(x4) + F(0.1)
whole = np.arange(-12, 12, dtype=INT).reshape(2, 3, 4)

# Element by element
for opset in (7, 13, 14, 17):
    for op in ("Add", "Sub", "Mul", "Div"):
        case("per channel", op, x4, consts={1: normal(6, 1, 1) + F(3)}, opset=opset)
        case("broadcast both", op, normal(3, 1, 5), normal(4, 1) + F(3), opset=opset)
case("truncates", "Div", whole, consts={1: ints(5)})
case("left constant", "Sub", None, x4, consts={0: np.float32(1.5)})
case("channel vector of lower rank", "Mul", x4, normal(8))
case("", "Pow", positive, consts={1: np.float32(1.7)})
case("square", "Pow", x4, consts={1: np.float32(2)}, opset=12)
for op in ("Sqrt", "Log"):
    case("", op, positive)
for op in ("Abs", "Neg", "Exp", "Floor", "Ceil", "Round", "Sign", "Reciprocal", "Erf", "Sin", "Cos", "Softsign"):
    case("", op, x4)
for op in ("Relu", "Sigmoid", "Tanh", "Elu", "Softplus", "HardSigmoid", "LeakyRelu", "HardSwish", "Identity"):
    case("", op, x4 * F(4))
    case("1 axis", op, normal(50) * F(30))
case("", "HardSigmoid", x4, alpha=0.3, beta=0.2)
case("", "LeakyRelu", x4, alpha=0.25)
case("", "Elu", x4, alpha=0.7)
for approximate in ("none", "tanh"):
    case(approximate, "Gelu", x4 * F(2), opset=20, approximate=approximate)
case("", "Mish", x4, opset=18)
case("", "Clip", x4, opset=7)
case("", "Clip", x4, opset=7, min=-0.5, max=0.25)
case("constants", "Clip", x4, consts={1: np.float32(-0.5), 2: np.float32(0.5)}, opset=11)
case("only max", "Clip", x4, consts={2: np.float32(0.5)})
case("operands", "Clip", x4, np.array(-0.3, F), np.array(0.9, F))
case("integers", "Clip", whole, consts={1: np.int64(-3), 2: np.int64(4)})
case("one slope", "PRelu", x4, consts={1: normal(1)})
case("per channel", "PRelu", x4, consts={1: normal(6, 1, 1)})
for op in ("Sum", "Mean", "Max", "Min"):
    case("", op, x4, normal(6, 1, 1), normal(2, 6, 9, 8, seed=1))
    case("single", op, x4)
for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"):
    case("", op, whole, whole[:, ::-1].copy())
case("", "Not", whole > 0)
for op in ("And", "Or", "Xor"):
    case("", op, whole > 0, whole % 2 == 0)
case("", "Where", x4 > 0, x4, normal(6, 1, 1))
case("", "Mod", whole, consts={1: ints(5)})
case("fmod", "Mod", x4, consts={1: np.float32(0.7)}, fmod=1)
for to in (TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE, TensorProto.FLOAT16):
    case(f"to {to}", "Cast", x4 * F(3), to=to)
case("", "Dropout", x4, opset=10)
case("", "Dropout", x4, consts={1: np.float32(0.4)})
case("mask", "Dropout", x4, outputs=2)

# Shapes, moves, indexing
case("", "Shape", x4)
case("part", "Shape", x4, opset=15, start=1, end=-1)
case("", "Size", x4)
for wanted in ((2, -1), (0, 0, 72), (-1,), (4, 3, 0, 8)):
    case(str(wanted), "Reshape", x4, consts={1: ints(*wanted)})
case("operand", "Reshape", x4, ints(0, -1, 4))
case("allowzero", "Reshape", normal(0, 3), consts={1: ints(3, 0)}, opset=14, allowzero=1)
for axis in (0, 1, 3, 4, -1):
    case(f"axis {axis}", "Flatten", x4, axis=axis, opset=13)
case("", "Flatten", x3, opset=9)
for opset in (11, 13):
    axes = {"axes": [0, -1]} if opset < 13 else {}
    extra = {} if opset < 13 else {"consts": {1: ints(0, -1)}}
    case("", "Squeeze", normal(1, 3, 2, 1), opset=opset, **extra, **axes)
    case("", "Unsqueeze", x3, opset=opset, **extra, **axes)
case("all", "Squeeze", normal(1, 3, 1, 2))
case("", "Transpose", x4)
case("", "Transpose", x4, perm=[0, 2, 3, 1])
for axis in (0, 1, -1):
    case(f"axis {axis}", "Concat", x4, normal(2, 6, 9, 8, seed=3), consts={2: normal(2, 6, 9, 8, seed=4)}, axis=axis)
case("", "Split", x4, outputs=3, axis=1, opset=11)
case("sizes", "Split", x4, outputs=2, axis=1, split=[2, 4], opset=11)
case("sizes", "Split", x4, consts={1: ints(2, 4)}, outputs=2, axis=1)
case("uneven", "Split", x4, outputs=2, axis=2, num_outputs=2, opset=18)
case("", "Slice", x4, opset=9, starts=[1, -3], ends=[5, 2**31], axes=[1, 2])
BIG = 2**63 - 1
for name, operands in {
    "": (ints(1), ints(4)),
    "axes": (ints(1, 2), ints(5, BIG), ints(1, -1)),
    "steps": (ints(0, 5), ints(BIG, 0), ints(1, 2), ints(2, -2)),
    "backwards": (ints(-1), ints(-BIG), ints(3), ints(-1)),
    "clamped": (ints(-100), ints(100), ints(2), ints(1)),
    "empty": (ints(4), ints(2), ints(2), ints(1)),
    "negative": (ints(-5), ints(-1), ints(2), ints(3)),
}.items():
    case(name, "Slice", x4, consts=dict(enumerate(operands, 1)))
case("operands", "Slice", x4, ints(1), ints(3), ints(1))
for axis in (0, 1, -1):
    case(f"axis {axis}", "Gather", x4, consts={1: np.array([[0, -1], [1, 1]], INT)}, axis=axis)
case("scalar", "Gather", x4, consts={1: np.array(1, INT)}, axis=2)
case("operand", "Gather", x4, ints(3, 0, -2), axis=2)
case("", "GatherElements", x2, consts={1: np.array([[0, -1], [2, 1], [1, 1], [6, 0]], INT)}, axis=1)
case("", "Expand", normal(3, 1), consts={1: ints(2, 1, 5)})
case("", "Tile", x3, consts={1: ints(1, 2, 3)})
case("", "ConstantOfShape", ints(2, 3))
case("value", "ConstantOfShape", ints(4), value=helper.make_tensor("v", TensorProto.INT64, [1], [7]))
case("", "Range", np.array(2, INT), np.array(11, INT), np.array(3, INT))
for mode in ("constant", "reflect", "edge"):
    case(mode, "Pad", x4, mode=mode, pads=[0, 0, 1, 2, 0, 0, 3, 1], opset=10)
    case(mode, "Pad", x3, consts={1: ints(0, 0, 4, 0, 0, 2)}, mode=mode)
    case(f"{mode} axes", "Pad", x4, consts={1: ints(1, 2, 2, 0), 3: ints(-1, 1)}, mode=mode, opset=18)
case("value", "Pad", x4, consts={1: ints(0, 1, 1, 1, 0, 1, 0, 0), 2: np.float32(2.5)})
case("crop", "Pad", x4, consts={1: ints(0, 0, -1, 1, 0, 0, 2, -2)})
case("operand", "Pad", x3, ints(0, 0, 2, 0, 0, 1), mode="reflect")
for mode in ("DCR", "CRD"):
    case(mode, "DepthToSpace", normal(2, 12, 3, 4), blocksize=2, mode=mode)
case("", "SpaceToDepth", normal(2, 3, 6, 4), blocksize=2)

# Reductions
for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare"):
    for keep in (0, 1):
        case(f"keep {keep}", op, x4, axes=[2, -1], keepdims=keep)
    case("all", op, x3)
case("", "ReduceMean", x4, consts={1: ints(1)}, opset=18, keepdims=0)
case("", "ReduceSum", x4, consts={1: ints(2, 3)})
case("", "ReduceSum", x4, axes=[1], opset=11)
case("nothing", "ReduceSum", x4, consts={1: ints()}, noop_with_empty_axes=1)
for op in ("ArgMax", "ArgMin"):
    for keep in (0, 1):
        case(f"keep {keep}", op, x4, axis=1, keepdims=keep)
case("last", "ArgMax", np.round(x4), axis=2, select_last_index=1)
for op in ("Softmax", "LogSoftmax"):
    for axis in (0, 1, -1):
        case(f"axis {axis}", op, x4, axis=axis)
    case("flattens", op, x4, opset=11)
    case("flattens", op, x4, opset=11, axis=2)

# Layers
for op in ("GlobalAveragePool", "GlobalMaxPool"):
    for x in (x3, x4, normal(1, 2, 3, 4, 5)):
        case(f"{x.ndim - 2}d", op, x)
    if op == "GlobalAveragePool":
        case("long", op, normal(1, 3, 112, 112) + F(2))
for op in ("MaxPool", "AveragePool"):
    case("2x2", op, x4, kernel_shape=[2, 2], strides=[2, 2])
    case("3x3", op, x4, kernel_shape=[3, 3], strides=[2, 1], pads=[1, 0, 1, 2])
    case("ceil", op, x4, kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1)
    case("ceil padded", op, x4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)
    case("ceil, last window in padding", op, normal(1, 1, 2, 2), kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1)
    case("1d", op, x3, kernel_shape=[4], strides=[3], pads=[2, 1])
    case("3d", op, normal(1, 2, 5, 6, 7), kernel_shape=[2, 3, 2], strides=[1, 2, 2])
    for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        case(auto, op, x4, kernel_shape=[3, 2], strides=[2, 2], auto_pad=auto)
case("dilated", "MaxPool", x4, kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 0, 0, 1])
case("counts padding", "AveragePool", x4, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
case(
    "counts padding, ceil",
    "AveragePool",
    x4,
    kernel_shape=[3, 3],
    strides=[3, 3],
    pads=[1, 1, 1, 1],
    count_include_pad=1,
    ceil_mode=1,
    opset=19,
)
case("dilated", "AveragePool", x4, kernel_shape=[2, 2], dilations=[2, 3], opset=19)
case("bytes", "MaxPool", np.arange(96, dtype=np.uint8).reshape(1, 2, 6, 8), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
statistics = {i: (np.abs(normal(6, seed=i)) + F(0.1)) for i in range(1, 5)}
for opset in (9, 15):
    case("", "BatchNormalization", x4, consts=statistics, opset=opset, epsilon=1e-3)
case("2 axes", "BatchNormalization", normal(5, 6), consts=statistics)
case("3 axes", "BatchNormalization", normal(2, 6, 4), consts=statistics)
case("", "InstanceNormalization", x4, consts={1: normal(6), 2: normal(6, seed=1)}, epsilon=1e-2)
case("", "LayerNormalization", x4, consts={1: normal(9, 8), 2: normal(9, 8, seed=1)}, axis=2)
case("no bias", "LayerNormalization", x2, consts={1: normal(7)}, epsilon=1e-3)
for size in (1, 3, 5):
    case(f"size {size}", "LRN", x4, size=size, alpha=0.1, beta=0.6, bias=1.5)
case("", "MatMul", normal(2, 3, 4, 5), normal(5, 6))
case("batched", "MatMul", normal(2, 1, 4, 5), normal(3, 5, 2))
case("vector", "MatMul", normal(3, 4), normal(4))
case("", "Gemm", x2, consts={1: normal(7, 5), 2: normal(5)})
case(
    "transposed",
    "Gemm",
    normal(7, 4),
    consts={1: normal(5, 7), 2: normal(4, 5)},
    transA=1,
    transB=1,
    alpha=0.5,
    beta=2.0,
)
case("no bias", "Gemm", x2, consts={1: normal(7, 5)}, opset=11)
case("scalar bias", "Gemm", x2, consts={1: normal(7, 5), 2: normal(1)}, opset=9)

# Resize
for opset in (10, 11, 13, 19):
    for mode in ("nearest", "linear"):
        for direction, scales in {"up": np.array([1, 1, 2, 2], F), "down": np.array([1, 1, 0.6, 0.45], F)}.items():
            operands = {1: scales} if opset == 10 else {1: np.zeros(0, F), 2: scales}
            case(f"{mode} {direction}", "Resize", x4, consts=operands, mode=mode, opset=opset)
case("nearest", "Upsample", x4, consts={1: np.array([1, 1, 2, 3], F)}, mode="nearest", opset=9)
case("linear", "Upsample", x4, scales=[1.0, 1.0, 2.0, 2.0], mode="linear", opset=7)
TRANSFORMS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
for transform in TRANSFORMS:
    for mode in ("nearest", "linear", "cubic"):
        options = {"mode": mode, "coordinate_transformation_mode": transform}
        case(f"{mode} {transform} sizes", "Resize", x4, consts={3: ints(2, 6, 13, 5)}, opset=19, **options)
        if mode != "cubic" or transform != "half_pixel_symmetric":
            scales = np.array([1, 1, 2.3, 0.7], F)
            case(f"{mode} {transform} scales", "Resize", x4, consts={2: scales}, opset=19, **options)
for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    for transform in ("half_pixel", "asymmetric"):
        options = {"nearest_mode": rounding, "coordinate_transformation_mode": transform, "mode": "nearest"}
        case(f"{rounding} {transform}", "Resize", x4, consts={3: ints(2, 6, 14, 3)}, **options)
case(
    "to one pixel",
    "Resize",
    x4,
    consts={3: ints(2, 6, 1, 1)},
    mode="linear",
    coordinate_transformation_mode="pytorch_half_pixel",
)
case(
    "exclude outside", "Resize", x4, consts={3: ints(2, 6, 14, 5)}, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5
)
case("axes", "Resize", x4, consts={3: ints(12, 4)}, axes=[2, 3], opset=18)
case("not larger", "Resize", x4, consts={3: ints(12, 12)}, axes=[2, 3], opset=18, keep_aspect_ratio_policy="not_larger")
case(
    "crop",
    "Resize",
    x4,
    consts={1: np.array([0, 0, 0.2, -0.1, 1, 1, 0.7, 1.2], F), 3: ints(2, 6, 5, 7)},
    mode="linear",
    coordinate_transformation_mode="tf_crop_and_resize",
    extrapolation_value=3.0,
)
case("operand", "Resize", x4, None, None, ints(2, 6, 12, 11), mode="linear")

# Convolutions
for rank, size in ((1, (13,)), (2, (9, 8)), (3, (5, 6, 4))):
    x = normal(2, 6, *size)
    for groups in (1, 2, 6):
        w = normal(12, 6 // groups, *(3,) * rank)
        pads = [1, 0, 2][:rank] + [0, 1, 1][:rank]
        case(f"{rank}d groups {groups}", "Conv", x, consts={1: w, 2: normal(12)}, group=groups, pads=pads)
    case(f"{rank}d strided", "Conv", x, consts={1: normal(4, 6, *(2,) * rank)}, strides=[2, 1, 2][:rank])
    case(f"{rank}d dilated", "Conv", x, consts={1: normal(4, 6, *(2,) * rank)}, dilations=[2, 3, 1][:rank])
    for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        case(f"{rank}d {auto}", "Conv", x, consts={1: normal(4, 6, *(3,) * rank)}, auto_pad=auto, strides=[2] * rank)
    for groups in (1, 3):
        options = {"strides": [2, 3, 2][:rank], "pads": [1, 0, 1][:rank] + [0, 1, 0][:rank], "group": groups}
        w = normal(6, 4, *(3,) * rank)
        case(f"{rank}d groups {groups}", "ConvTranspose", x, consts={1: w, 2: normal(4 * groups)}, **options)
case("pointwise", "Conv", x4, consts={1: normal(5, 6, 1, 1)}, kernel_shape=[1, 1])
case("filter operand", "Conv", x4, normal(5, 6, 3, 3), normal(5))
case("output padding", "ConvTranspose", x4, consts={1: normal(6, 4, 3, 3)}, strides=[2, 3], output_padding=[1, 2])
case("dilated", "ConvTranspose", x4, consts={1: normal(6, 4, 3, 2)}, dilations=[2, 3])
for auto in ("SAME_UPPER", "SAME_LOWER"):
    case(auto, "ConvTranspose", x4, consts={1: normal(6, 4, 3, 3)}, strides=[2, 2], auto_pad=auto)
    case(
        f"shape {auto}",
        "ConvTranspose",
        x4,
        consts={1: normal(6, 4, 4, 4)},
        strides=[2, 2],
        output_shape=[17, 16],
        auto_pad=auto,
    )
case("shape", "ConvTranspose", x4, consts={1: normal(6, 4, 4, 4)}, strides=[2, 2], output_shape=[17, 15])
bytes4 = np.random.default_rng(5).integers(0, 255, (1, 4, 6, 6)).astype(np.uint8)
case(
    "", "ConvInteger", bytes4, consts={1: bytes4[:1, :, :3, :3], 2: np.uint8(120), 3: np.uint8(100)}, pads=[1, 1, 1, 1]
)

case("of integers", "ConvInteger", bytes4.view(np.int8), consts={1: bytes4[:1, :, :3, :3].view(np.int8)})
for kind in (np.uint8, np.int8):
    q, low = bytes4.view(kind), np.iinfo(kind).min
    steps = {1: F(0.02), 2: kind(low + 120), 6: F(0.5), 7: kind(low + 100)}
    w = np.random.default_rng(6).integers(-128, 127, (6, 2, 3, 3)).astype(np.int8)
    each, bias = np.abs(normal(6)) * F(0.02), np.arange(-300, 300, 100, dtype=np.int32)
    per_channel = {3: w, 4: each, 5: np.zeros(6, np.int8), 8: bias}
    case(f"{kind.__name__} per channel", "QLinearConv", q, consts=steps | per_channel, group=2, pads=[1, 0, 2, 1])
    whole_filter = {3: q[:1, :, :3, :2], 4: F(0.03), 5: kind(low + 99)}
    case(f"{kind.__name__} one scale", "QLinearConv", q, consts=steps | whole_filter, strides=[2, 1], dilations=[1, 2])
    case(f"to {kind.__name__}", "QuantizeLinear", x4, consts={1: F(0.02), 2: kind(low + 130)})
    case(f"to {kind.__name__} by axis", "QuantizeLinear", x4, consts={1: each, 2: np.arange(6).astype(kind)})
    case(f"from {kind.__name__}", "DequantizeLinear", q, consts={1: F(0.02), 2: kind(low + 130)})
    case(f"from {kind.__name__} by axis", "DequantizeLinear", q, consts={1: each}, axis=-1)
half = x4.astype(np.float16)
case("half", "QuantizeLinear", half, consts={1: np.float16(0.02), 2: np.uint8(130)}, opset=19)
case("to int16", "QuantizeLinear", x4, consts={1: F(1e-4), 2: np.int16(-9)}, opset=21)
case("output_dtype", "QuantizeLinear", x4, consts={1: F(0.03)}, opset=21, output_dtype=TensorProto.INT8)
case("no zero point", "QuantizeLinear", np.abs(x4), consts={1: F(0.03)})
case("to half", "DequantizeLinear", bytes4, consts={1: np.float16(0.02)}, opset=19)
case("of sums", "DequantizeLinear", whole.astype(np.int32), consts={1: F(0.02)})
case("", "CastLike", x4, np.zeros(1, np.float16), opset=15)
for opset in (19, 22):
    w = normal(4, 4, 3, 3)
    offset = normal(2, 2 * 9 * 2, 4, 4) * F(4)  # many of them outside
    case("", "DeformConv", normal(2, 4, 6, 6), None, offset, consts={1: w}, opset=opset, offset_group=2)
DEFORM_INPUTS = normal(1, 6, 8, 7), None, normal(1, 3 * 6 * 2, 3, 6), normal(4), normal(1, 3 * 6, 3, 6)
case(
    "everything",
    "DeformConv",
    *DEFORM_INPUTS,
    consts={1: normal(4, 3, 3, 2)},
    opset=22,
    group=2,
    offset_group=3,
    strides=[2, 1],
    dilations=[2, 3],
    pads=[1, 0, 0, 2],
    kernel_shape=[3, 2],
)
for activation in ("none", "silu", "swish"):
    attributes = {"activation": activation, "opset": 27, "outputs": 2}
    case(f"{activation}", "CausalConvWithState", normal(2, 4, 7), consts={1: normal(4, 1, 3)}, **attributes)
    state = normal(4), normal(2, 4, 2)
    case(
        f"{activation} on",
        "CausalConvWithState",
        normal(2, 4, 1),
        None,
        *state,
        consts={1: normal(4, 1, 3)},
        **attributes,
    )

# Recurrent
for op, gates in (("LSTM", 4), ("GRU", 3)):
    hidden, features, steps, batch = 5, 4, 6, 3
    for direction, d in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
        base = {1: normal(d, gates * hidden, features), 2: normal(d, gates * hidden, hidden, seed=1)}
        biased = {**base, 3: normal(d, 2 * gates * hidden)}
        count = 3 if op == "LSTM" else 2
        sequence = normal(steps, batch, features)
        common = {"hidden_size": hidden, "direction": direction, "outputs": count}
        case(direction, op, sequence, consts=biased, **common)
        lengths = np.array([6, 2, 4], np.int32)
        case(f"{direction} lengths", op, sequence, consts={**biased, 4: lengths}, **common)
        states = {5: normal(d, batch, hidden)} | ({6: normal(d, batch, hidden, seed=2)} if op == "LSTM" else {})
        case(f"{direction} states, clip", op, sequence, consts={**base, **states}, clip=0.5, **common)
    common = {"hidden_size": hidden, "outputs": 1}
    base = {1: normal(1, gates * hidden, features), 2: normal(1, gates * hidden, hidden, seed=1)}
    if op == "LSTM":
        case("peepholes", op, sequence, consts={**base, 7: normal(1, 3 * hidden)}, **common)
        case(
            "activations",
            op,
            sequence,
            consts=base,
            activations=["HardSigmoid", "Relu", "Tanh"],
            activation_alpha=[0.3],
            activation_beta=[0.4],
            **common,
        )
    else:
        case("late", op, sequence, consts={**base, 3: normal(1, 6 * hidden)}, linear_before_reset=1, **common)
        case(
            "activations",
            op,
            sequence,
            consts=base,
            activations=["Sigmoid", "LeakyRelu"],
            activation_alpha=[0.2],
            **common,
        )
