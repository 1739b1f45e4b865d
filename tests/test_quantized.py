"""Quantised convolution against onnxruntime, onnx's reference and integers worked out by hand: always exactly."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import gpu_conv
from gpu_conv import quantized

from .graph_models import onnxruntime_session

TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}
NAMES = ("x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "bias")


def model(op, inputs, y_type, **attributes):
    """One node; x is its input, all else constant."""
    constants = [numpy_helper.from_array(np.asarray(a), name) for name, a in inputs.items() if name != "x"]
    x = helper.make_tensor_value_info("x", TYPES[inputs["x"].dtype.name], inputs["x"].shape)
    y = helper.make_tensor_value_info("y", y_type, None)
    graph = helper.make_graph([helper.make_node(op, list(inputs), ["y"], **attributes)], "one", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def by_onnxruntime(proto: onnx.ModelProto, x):
    return onnxruntime_session(proto).run(None, {"x": x})[0]


def full(rng, dtype, shape=()):
    info = np.iinfo(dtype)
    return np.asarray(rng.integers(info.min, info.max, shape, endpoint=True)).astype(dtype)


def random_arguments(rng, groups, channels, filters, k):
    """What onnxruntime takes: u8 u8, u8 s8 and s8 s8, filters of s8 without zero points."""
    x_type, w_type = (("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8"))[rng.integers(3)]
    per_channel = (groups * filters,) if rng.random() < 0.5 else ()
    ties = rng.random() < 0.3  # scales of powers of two: sums lie halfway between integers
    w_zero = full(rng, w_type) if w_type == "uint8" else np.int8(0)
    return (
        full(rng, x_type, (2, groups * channels, *rng.integers(5, 10, 2))),
        np.float32(0.5 if ties else rng.uniform(0.01, 1)),
        full(rng, x_type),
        full(rng, w_type, (groups * filters, channels, *k)),
        np.broadcast_to(np.float32(0.25), per_channel) if ties else rng.uniform(0.01, 1, per_channel).astype("f4"),
        np.broadcast_to(w_zero, per_channel),
        np.float32(64 if ties else rng.uniform(1, 60)),
        full(rng, x_type),
        rng.integers(-9000, 9000, groups * filters).astype(np.int32) if rng.random() < 0.5 else None,
    )


def test_random_calls_against_onnxruntime(seed, record_property):
    record_property("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        groups, channels, filters, k = (int(rng.choice(a)) for a in ([1, 1, 2, 4], [1, 3, 8], [1, 2, 3], [1, 3]))
        given = random_arguments(rng, groups, channels, filters, (k, k))
        strides, pads, dilations = rng.integers(1, 3, 2), rng.integers(0, 3, 4), rng.integers(1, 3, 2)
        onnx_options = {"strides": strides, "pads": pads, "dilations": dilations, "group": groups}
        inputs = {name: a for name, a in zip(NAMES, given, strict=True) if a is not None}
        proto = model("QLinearConv", inputs, TYPES[given[0].dtype.name], **onnx_options)
        wanted = by_onnxruntime(proto, given[0])
        options = dict(strides=strides, padding=((pads[0], pads[2]), (pads[1], pads[3])), dilations=dilations)
        got = gpu_conv.qlinear_conv(*given, groups=groups, **options)
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted, err_msg=str((onnx_options, [a.shape for a in inputs.values()])))
        last = np.ascontiguousarray(given[0].transpose(0, 2, 3, 1))
        layouts = dict(input_layout="nhwc", output_layout="nchw")
        got = gpu_conv.qlinear_conv(last, *given[1:], groups=groups, **options, **layouts)
        np.testing.assert_array_equal(got, wanted)


def test_the_reference_of_onnx_without_a_zero_point_of_y():
    """It adds the zero point before it rounds, which differs at halves; without one it is the same formula."""
    rng = np.random.default_rng(1)
    x, w = full(rng, "uint8", (1, 3, 7, 6)), full(rng, "uint8", (4, 3, 3, 3))
    given = (x, np.float32(0.01), np.uint8(77), w, np.float32(0.3), np.uint8(99), np.float32(0.9), np.uint8(0))
    inputs = dict(zip(NAMES, given, strict=False))
    proto = model("QLinearConv", inputs, TensorProto.UINT8, pads=[1, 1, 1, 1])
    wanted = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    assert len(np.unique(wanted)) > 20
    np.testing.assert_array_equal(gpu_conv.qlinear_conv(*given, padding=1), wanted)


@pytest.mark.parametrize("w_type", ["uint8", "int8"])
def test_integer_sums(w_type):
    """ConvInteger: padding is the zero point of x, so it contributes nothing; filters have one per channel."""
    rng = np.random.default_rng(2)
    x, w = full(rng, "uint8", (2, 4, 6, 5)), full(rng, w_type, (6, 2, 3, 3))
    x_zero, w_zero = np.uint8(200), full(rng, w_type, (6,))
    got = gpu_conv.conv2d(x, w, padding=2, groups=2, strides=2, x_zero_point=x_zero, w_zero_point=w_zero)
    padded = np.pad(x.astype(int) - int(x_zero), ((0, 0), (0, 0), (2, 2), (2, 2)))
    shifted = w.astype(int) - w_zero.astype(int)[:, None, None, None]
    wanted = np.zeros((2, 6, 4, 4), int)
    for n, o, i, j in np.ndindex(wanted.shape):
        wanted[n, o, i, j] = (
            padded[n, o // 3 * 2 : o // 3 * 2 + 2, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * shifted[o]
        ).sum()
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, wanted)
    inputs = {"x": x, "w": w, "x_zero_point": x_zero, "w_zero_point": w_zero}
    proto = model("ConvInteger", inputs, TensorProto.INT32, pads=[2] * 4, group=2, strides=[2, 2])
    np.testing.assert_array_equal(got, ReferenceEvaluator(proto).run(None, {"x": x})[0])
    if w_type == "uint8":
        single = {**inputs, "w_zero_point": np.uint8(9)}
        proto = model("ConvInteger", single, TensorProto.INT32, pads=[2] * 4, group=2, strides=[2, 2])
        got = gpu_conv.conv2d(x, w, padding=2, groups=2, strides=2, x_zero_point=x_zero, w_zero_point=9)
        np.testing.assert_array_equal(got, by_onnxruntime(proto, x))


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_rounding_and_saturation_by_hand(device):
    """Halves go to the even number before the zero point is added, whatever that is; then the type limits."""
    x = np.array([-128, -5, -3, -1, 0, 1, 3, 5, 127], np.int8).reshape(1, 1, 9)
    w = np.ones((1, 1, 1), np.int8)
    for zero, wanted in ((1, [-63, -1, -1, 1, 1, 1, 3, 3, 65]), (0, [-64, -2, -2, 0, 0, 0, 2, 2, 64])):
        got = gpu_conv.qlinear_conv(x, 0.5, 0, w, 1.0, 0, 1.0, np.int8(zero), device=device)
        np.testing.assert_array_equal(got.ravel(), wanted)
    got = gpu_conv.qlinear_conv(x, 0.5, 0, w, 1.0, 0, 0.25, np.uint8(10), device=device)
    np.testing.assert_array_equal(got.ravel(), [0, 0, 4, 8, 10, 12, 16, 20, 255])
    got = gpu_conv.qlinear_conv(x, 3e38, 0, w, 1.0, 0, 1.0, np.uint8(10), device=device)  # infinite products
    np.testing.assert_array_equal(got.ravel(), [0, 0, 0, 0, 10, 255, 255, 255, 255])


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_large_sums_and_biases_are_rounded_to_float32_once(device):
    """A sum beyond 2^24 is rounded when it becomes a float, and not before the bias is added; int32 wraps."""
    x, w = np.full((1, 1, 1), 127, np.int8), np.ones((4, 1, 1), np.int8)
    bias = np.array([2**24 - 126, 2**30 + 1, 2**31 - 1, -(2**31)], np.int32)
    scale = np.float32(1 / 2**23)
    total = (bias.astype(np.int64) + 127).astype(np.int32)
    wanted = np.clip(np.rint(total.astype(np.float32) * scale), -128, 127)
    got = gpu_conv.qlinear_conv(x, 1.0, 0, w, scale, 0, 1.0, np.int8(0), bias, device=device)
    np.testing.assert_array_equal(got.ravel(), wanted)


@pytest.mark.parametrize("transposed", [False, True])
def test_layer_out_and_transposed(transposed):
    rng = np.random.default_rng(3)
    x, w = full(rng, "uint8", (2, 4, 6, 6)), full(rng, "int8", (4, 4, 3, 3))
    scale = rng.uniform(1e-3, 1e-2, 4).astype(np.float32)
    options = dict(padding=1, strides=2, x_zero_point=np.uint8(120), requantize=(scale, np.int8(-3)))
    if transposed:
        call = gpu_conv.arguments.prepare(x, w, None, transposed=True, **options)
        gpu_conv.execute.prepare(call, "cpu")(call.operands)
        got = call.result
        sums = gpu_conv.conv_transpose2d(x.astype(np.int32) - 120, w.astype(np.int32), padding=1, strides=2)
    else:
        layer = gpu_conv.Conv(w, **options)
        out = np.empty((2, 4, 3, 3), np.int8)
        got = layer(x, out=out)
        assert got is out
        np.testing.assert_array_equal(layer(x), got)
        sums = gpu_conv.conv2d(x.astype(np.int32) - 120, w.astype(np.int32), padding=1, strides=2)
    wanted = np.rint(sums.astype(np.float32) * scale[:, None, None]) - 3
    np.testing.assert_array_equal(got, np.clip(wanted, -128, 127))


def test_the_type_of_the_result():
    x, w = np.ones((1, 1, 3), np.uint8), np.ones((1, 1, 1), np.int8)
    for zero_point, options, wanted in (
        (0, {}, "uint8"),
        (np.int8(0), {}, "int8"),
        (np.zeros(1, np.int8), {}, "int8"),
        (np.int64(0), {}, "uint8"),
        (0, {"out_dtype": "int8"}, "int8"),
        (np.uint8(0), {"out": np.empty((1, 1, 3), np.int8)}, "int8"),
    ):
        assert gpu_conv.qlinear_conv(x, 1.0, 0, w, 1.0, 0, 1.0, zero_point, **options).dtype == wanted


def call(**changed):
    given = dict(zip(NAMES, (X, 1.0, 0, W, 1.0, 0, 1.0, 0), strict=False)) | changed
    return lambda: gpu_conv.qlinear_conv(**given)


X, W = np.zeros((1, 2, 4, 4), np.uint8), np.zeros((4, 2, 3, 3), np.int8)
WRONG = {
    "floats": (call(x=X.astype("f4"), w=W.astype("f4")), TypeError, "int8 and uint8 to int8 or uint8, got float32"),
    "wide result": (call(out_dtype="int32"), TypeError, "got uint8 to int32"),
    "activation": (call(activation="relu"), TypeError, "does not take the option activation"),
    "x_scale": (call(x_scale=np.ones(4, "f4")), ValueError, r"x_scale must be one number, got the shape \(4,\)"),
    "w_scale": (call(w_scale=np.ones(3, "f4")), ValueError, r"scale of requantize must be a scalar or \(4,\)"),
    "no scale": (call(y_scale=0.0), ValueError, "positive and finite"),
    "negative scale": (call(w_scale=-1.0), ValueError, "positive and finite"),
    "y_zero_point": (call(y_zero_point=256), ValueError, "must fit in uint8, got 256"),
    "x_zero_point": (call(x_zero_point=-1), ValueError, "x_zero_point must be in the range of uint8, got -1"),
    "w_zero_point": (call(w_zero_point=[0, 0, 0, 128]), ValueError, "w_zero_point must be in the range of int8"),
    "zero point kind": (call(y_zero_point=0.5), TypeError, "zero_point of requantize must be an integer"),
    "bias": (call(bias=np.ones(4, "f4")), TypeError, "bias must be integer"),
    "pair": (lambda: gpu_conv.conv(X, W, requantize=0.5), TypeError, r"pair \(scale, zero_point\), got 0.5"),
    "residual": (
        lambda: gpu_conv.conv(X, W, requantize=(0.5, 0), residual=np.zeros((1, 4, 2, 2), np.uint8)),
        ValueError,
        "residual and requantize cannot be combined",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls(name):
    run, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        run()


def test_the_emulated_gpu_gives_the_same_bits():
    rng = np.random.default_rng(5)
    for groups, channels, filters, k in ((1, 16, 8, 1), (8, 1, 1, 3)):
        given = random_arguments(rng, groups, channels, filters, (k, k))
        wanted = gpu_conv.qlinear_conv(*given, groups=groups, padding=k // 2)
        got = gpu_conv.qlinear_conv(*given, groups=groups, padding=k // 2, device="emulator")
        np.testing.assert_array_equal(got, wanted)


def test_arrays_of_other_libraries_keep_their_scales():
    """Only numbers and NumPy arrays are converted to float32; anything else stays on its device."""

    class Elsewhere:
        dtype = np.dtype(np.float32)

    scale = Elsewhere()
    assert quantized._float32(scale) is scale
    assert quantized._float32(0.1) == np.float32(0.1)
