"""DirectML's convolution operators: every field of their descriptions as the call that docs/directml.md gives for it.

The expected values come from DirectML's own formulas, written out here product by product, or by hand.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest

import gpu_conv

PAGE = Path(__file__).parents[1] / "docs" / "directml.md"
DEVICES = (None, "emulator")


def integers(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def convolution(
    x, w, mode="CROSS_CORRELATION", direction="FORWARD", strides=None, dilations=None, start=None, end=None,
    output_padding=None, groups=1,
):  # fmt: skip
    """DML_CONVOLUTION_OPERATOR_DESC, one product after the other, in float64.

    Both directions walk over the same triples (long position, tap, short position), with long = short * stride + tap *
    dilation - start: the forward one adds up along the taps, the backward one distributes.
    """
    rank, forward = x.ndim - 2, direction == "FORWARD"
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    start, end, extra = start or (0,) * rank, end or (0,) * rank, output_padding or (0,) * rank
    if mode == "CONVOLUTION":
        w = np.flip(w, tuple(range(2, w.ndim)))
    axes = list(zip(x.shape[2:], w.shape[2:], strides, dilations, start, end, extra))
    if forward:
        size = [(n + lo + hi - (k - 1) * d - 1) // s + 1 for n, k, s, d, lo, hi, _ in axes]
    else:
        size = [(n - 1) * s + (k - 1) * d + 1 - lo - hi + e for n, k, s, d, lo, hi, e in axes]
    outs = w.shape[0] if forward else w.shape[1] * groups
    y = np.zeros((x.shape[0], outs, *size))
    long, short = (x, y) if forward else (y, x)
    for at in np.ndindex(short.shape[2:]):
        for tap in np.ndindex(w.shape[2:]):
            where = tuple(a * s + t * d - lo for a, t, s, d, lo in zip(at, tap, strides, dilations, start))
            if not all(0 <= p < n for p, n in zip(where, long.shape[2:])):
                continue
            for group in range(groups):
                of_short = range(group * short.shape[1] // groups, (group + 1) * short.shape[1] // groups)
                of_long = range(group * long.shape[1] // groups, (group + 1) * long.shape[1] // groups)
                for m in of_short:
                    for c in of_long:
                        weight = float(w[(m, c - of_long[0], *tap)])
                        if forward:
                            y[(slice(None), m, *at)] += weight * x[(slice(None), c, *where)]
                        else:
                            y[(slice(None), c, *where)] += weight * x[(slice(None), m, *at)]
    return y


def same(call, want, x, w, **options):
    for device in DEVICES:
        np.testing.assert_array_equal(call(x, w, device=device, **options), want)


# ------------------------------------------------------------------------------------- DML_CONVOLUTION_OPERATOR_DESC


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_dimension_count(rank):
    """One, two and three spatial dimensions: tensors of 3, 4 and 5."""
    x, w = integers(1, 2, 3, *(5, 4, 6)[:rank]), integers(2, 4, 3, *(2, 3, 2)[:rank])
    same(getattr(gpu_conv, f"conv{rank}d"), convolution(x, w), x, w)
    same(getattr(gpu_conv, f"conv_transpose{rank}d"), convolution(x, w[:3], direction="BACKWARD"), x, w[:3])


def test_tensors_with_strides():
    """DML_BUFFER_TENSOR_DESC::Strides are those of the arrays: transposed, sliced, broadcast."""
    x, w = integers(1, 2, 6, 7, 3).transpose(0, 3, 1, 2), np.broadcast_to(integers(2, 1, 3, 2, 2), (4, 3, 2, 2))
    same(gpu_conv.conv2d, convolution(x[..., ::2], w), x[..., ::2], w)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_data_types(dtype):
    x, w = integers(1, 1, 3, 5, 5, dtype=dtype), integers(2, 4, 3, 3, 3, dtype=dtype)
    assert gpu_conv.conv2d(x, w).dtype == dtype
    same(gpu_conv.conv2d, convolution(x, w), x, w)


@pytest.mark.parametrize("shape", [(4,), (1, 4, 1, 1)])
def test_bias_tensor(shape):
    x, w, bias = integers(1, 2, 3, 5, 5), integers(2, 4, 3, 3, 3), integers(3, 4)
    want = convolution(x, w) + bias.reshape(1, 4, 1, 1)
    same(gpu_conv.conv2d, want, x, w, bias=bias.reshape(shape))


def test_output_tensor():
    x, w = integers(1, 2, 3, 5, 5), integers(2, 4, 3, 3, 3)
    for device in DEVICES:
        out = np.full((2, 3, 3, 4), np.nan, np.float32).transpose(0, 3, 1, 2)  # an OutputTensor with strides
        assert gpu_conv.conv2d(x, w, out=out, device=device) is out
        np.testing.assert_array_equal(out, convolution(x, w))


def test_mode():
    x, w = integers(1, 1, 2, 5, 6), integers(2, 3, 2, 2, 3)
    same(gpu_conv.conv2d, convolution(x, w, "CROSS_CORRELATION"), x, w)
    same(gpu_conv.conv2d, convolution(x, w, "CONVOLUTION"), x, w, flip_filter=True)


def test_direction():
    x, w = integers(1, 1, 2, 4, 5), integers(2, 2, 3, 2, 3)
    same(gpu_conv.conv_transpose2d, convolution(x, w, direction="BACKWARD"), x, w)
    want = convolution(x, w, "CONVOLUTION", "BACKWARD")
    same(gpu_conv.conv_transpose2d, want, x, w[:, :, ::-1, ::-1])


@pytest.mark.parametrize("direction", ["FORWARD", "BACKWARD"])
def test_strides_and_dilations(direction):
    x, w = integers(1, 1, 2, 6, 7), integers(2, 2, 2, 3, 2)
    call = gpu_conv.conv2d if direction == "FORWARD" else gpu_conv.conv_transpose2d
    for options in ({"strides": (2, 3)}, {"dilations": (2, 3)}, {"strides": (3, 2), "dilations": (1, 2)}):
        same(call, convolution(x, w, direction=direction, **options), x, w, **options)


@pytest.mark.parametrize("direction", ["FORWARD", "BACKWARD"])
def test_start_and_end_padding(direction):
    x, w = integers(1, 1, 2, 4, 5), integers(2, 2, 2, 3, 3)
    call = gpu_conv.conv2d if direction == "FORWARD" else gpu_conv.conv_transpose2d
    want = convolution(x, w, direction=direction, strides=(2, 1), start=(1, 0), end=(0, 2))
    same(call, want, x, w, strides=(2, 1), padding=((1, 0), (0, 2)))


def test_output_padding():
    x, w = integers(1, 1, 2, 3, 4), integers(2, 2, 2, 2, 3)
    options = {"strides": (3, 2), "output_padding": (2, 1)}
    want = convolution(x, w, direction="BACKWARD", **options)
    same(gpu_conv.conv_transpose2d, want, x, w, **options)
    same(gpu_conv.conv_transpose2d, want, x, w, strides=(3, 2), output_sizes=want.shape[2:])


@pytest.mark.parametrize("groups", [2, 4])
def test_group_count(groups):
    """Grouped, and depthwise with two filters for every channel."""
    x, w = integers(1, 2, 4, 5, 5), integers(2, 8, 4 // groups, 3, 3)
    same(gpu_conv.conv2d, convolution(x, w, groups=groups), x, w, groups=groups)
    w = integers(2, 4, 2, 2, 2)
    same(gpu_conv.conv_transpose2d, convolution(x, w, direction="BACKWARD", groups=groups), x, w, groups=groups)


# Every activation that DirectML fuses: the option here for some values of its fields, and DirectML's formula.
FUSED_ACTIVATIONS = {
    "ELU": (("elu", 0.5), lambda v: v if v >= 0 else 0.5 * (math.exp(v) - 1)),
    "HARD_SIGMOID": (("hard_sigmoid", 0.25, 0.5), lambda v: max(0, min(0.25 * v + 0.5, 1))),
    "IDENTITY": (None, lambda v: v),
    "LEAKY_RELU": (("leaky_relu", 0.25), lambda v: v if v >= 0 else 0.25 * v),
    "LINEAR": (("linear", -2, 0.5), lambda v: -2 * v + 0.5),
    "PARAMETRIC_SOFTPLUS": (("parametric_softplus", 0.5, 2), lambda v: 0.5 * math.log(1 + math.exp(2 * v))),
    "RELU": ("relu", lambda v: max(0, v)),
    "SCALED_ELU": (("selu", 1.5, 0.75), lambda v: 0.75 * (v if v > 0 else 1.5 * (math.exp(v) - 1))),
    "SCALED_TANH": (("scaled_tanh", 1.5, 0.5), lambda v: 1.5 * math.tanh(0.5 * v)),
    "SIGMOID": ("sigmoid", lambda v: 1 / (1 + math.exp(-v))),
    "SOFTPLUS": (("parametric_softplus", 1 / 3, 3), lambda v: math.log(1 + math.exp(3 * v)) / 3),  # Steepness 3
    "SOFTSIGN": ("softsign", lambda v: v / (1 + abs(v))),
    "TANH": ("tanh", math.tanh),
    "THRESHOLDED_RELU": (("thresholded_relu", 1.5), lambda v: v if v > 1.5 else 0),
    "SHRINK": (("shrink", 0.25, 1.5), lambda v: v - 0.25 if v > 1.5 else v + 0.25 if v < -1.5 else 0),
    "CELU": (("celu", 0.5), lambda v: max(0, v) + min(0, 0.5 * (math.exp(v / 0.5) - 1))),
}


@pytest.mark.parametrize("name", FUSED_ACTIVATIONS)
def test_fused_activation(name):
    activation, formula = FUSED_ACTIVATIONS[name]
    x = np.array([-4, -2, -1.5, -1, -0.25, 0, 0.25, 1, 1.5, 2, 4], np.float32).reshape(1, 1, -1)
    got = gpu_conv.conv1d(x, np.array([[[2]]], np.float32), np.array([0.5], np.float32), activation=activation)
    np.testing.assert_allclose(got[0, 0], [formula(2 * float(v) + 0.5) for v in x[0, 0]], rtol=3e-6, atol=3e-7)


# ----------------------------------------------------------------------------- DML_CONVOLUTION_INTEGER_OPERATOR_DESC


def quantised(dtype, *shape):
    return (
        np.random.default_rng(len(shape)).integers(*((-9, 9) if dtype == "int8" else (120, 140)), shape).astype(dtype)
    )


@pytest.mark.parametrize("x_type", ["int8", "uint8"])
@pytest.mark.parametrize("w_type", ["int8", "uint8"])
def test_integer_data_types(x_type, w_type):
    x, w = quantised(x_type, 2, 4, 6, 5), quantised(w_type, 6, 2, 3, 3)
    options = {"strides": (2, 1), "dilations": (1, 2), "groups": 2}
    want = convolution(x.astype(int), w.astype(int), start=(1, 2), end=(0, 1), **options)
    assert gpu_conv.conv2d(x, w, groups=2).dtype == np.int32
    same(gpu_conv.conv2d, want, x, w, padding=((1, 0), (2, 1)), **options)


def test_input_zero_point_tensor():
    """Padding has the zero point's value: it contributes nothing."""
    x, w = quantised("uint8", 1, 2, 4, 4), quantised("int8", 3, 2, 3, 3)
    want = convolution(x.astype(int) - 128, w.astype(int), start=(1, 1), end=(1, 1))
    same(gpu_conv.conv2d, want, x, w, x_zero_point=np.array([[[[128]]]], np.uint8).item(), padding=1)


def test_filter_zero_point_tensor():
    """One for all, and one per output channel, {1, OutputChannelCount, 1, 1} in DirectML."""
    x, w = quantised("int8", 1, 2, 4, 4), quantised("uint8", 3, 2, 3, 3)
    for zero in (130, np.array([125, 128, 131])):
        shaped = np.reshape(zero, (-1, 1, 1, 1))
        same(gpu_conv.conv2d, convolution(x.astype(int), w - shaped), x, w, w_zero_point=zero)


# -------------------------------------------------------------------- DML_QUANTIZED_LINEAR_CONVOLUTION_OPERATOR_DESC


def quantised_linear(x, xs, xz, w, ws, wz, ys, yz, bias, lo, hi, **options):
    """Dequantise, convolve, quantise; a sum of integers with scales that are powers of two, so that all is exact."""
    w_real = (w - np.reshape(wz, (-1, 1, 1, 1)).astype(float)) * np.reshape(ws, (-1, 1, 1, 1))
    real = convolution((x.astype(float) - xz) * xs, w_real, **options)
    real += (bias * xs * np.asarray(ws)).reshape(1, -1, 1, 1)
    return np.clip(np.rint(real / ys) + yz, lo, hi)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantized_linear(dtype, per_channel):
    """Scales and zero points of input, filter and output, the bias, and all spatial fields."""
    info = np.iinfo(dtype)
    x, w, middle = quantised(dtype, 2, 4, 6, 5), quantised("int8", 4, 2, 3, 3), 0 if dtype == "int8" else 130
    ws, wz = (np.array([0.5, 0.25, 1, 2]), np.array([0, 1, -2, 3])) if per_channel else (0.5, 1)
    bias = np.array([5, -7, 0, 30], np.int32)
    spatial = {"strides": (1, 2), "dilations": (2, 1), "groups": 2}
    numbers = {"start": (1, 0), "end": (2, 1), **spatial}
    want = quantised_linear(x, 0.25, middle, w, ws, wz, 2.0, middle, bias, info.min, info.max, **numbers)
    assert len(np.unique(want)) > 20
    for device in DEVICES:
        got = gpu_conv.qlinear_conv(
            x, 0.25, np.dtype(dtype).type(middle), w, ws, np.asarray(wz, np.int8), 2.0, np.dtype(dtype).type(middle),
            bias, padding=((1, 2), (0, 1)), device=device, **spatial,
        )  # fmt: skip
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want)


def test_quantized_linear_rounds_halves_to_even_and_saturates():
    x = np.array([[[[-128, -127, -5, -3, -1, 1, 3, 5, 127]]]], np.int8)
    for device in DEVICES:
        got = gpu_conv.qlinear_conv(
            x, 1.0, np.int8(0), np.array([[[[1]]]], np.int8), 1.0, np.int8(0), 2.0, np.uint8(1), device=device
        )
        assert got.dtype == np.uint8
        assert got.ravel().tolist() == [0, 0, 0, 0, 1, 1, 3, 3, 65]


# ---------------------------------------------------------------------------------------------------------- the page


SPATIAL = ["DimensionCount", "Strides", "Dilations", "StartPadding", "EndPadding"]
FIELDS = {
    "DML_CONVOLUTION_OPERATOR_DESC": [
        "InputTensor", "FilterTensor", "BiasTensor", "OutputTensor", "Mode", "Direction", *SPATIAL, "OutputPadding",
        "GroupCount", "FusedActivation",
    ],
    "FusedActivation": [f"ACTIVATION_{name}" for name in FUSED_ACTIVATIONS],
    "DML_CONVOLUTION_INTEGER_OPERATOR_DESC": [
        "InputTensor", "InputZeroPointTensor", "FilterTensor", "FilterZeroPointTensor", "OutputTensor", *SPATIAL,
        "GroupCount",
    ],
    "DML_QUANTIZED_LINEAR_CONVOLUTION_OPERATOR_DESC": [
        "InputTensor", "InputScaleTensor", "InputZeroPointTensor", "FilterTensor", "FilterScaleTensor",
        "FilterZeroPointTensor", "BiasTensor", "OutputScaleTensor", "OutputZeroPointTensor", "OutputTensor", *SPATIAL,
        "GroupCount",
    ],
}  # fmt: skip


@pytest.mark.parametrize("section", FIELDS)
def test_the_page_has_every_field_and_a_test_for_it(section):
    (text,) = re.findall(rf"^##+ {section}\n(.*?)(?=^##|\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    rows = re.findall(r"^\| `(\w+)`(.*)\|$", text, re.M)
    assert list(dict.fromkeys(field for field, _ in rows)) == FIELDS[section]
    for field, row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, field
        assert all(callable(globals().get(name)) for name in named), field
