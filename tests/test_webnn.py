"""WebNN's operators against values worked out by hand or by the definition."""

from itertools import product

import numpy as np
import pytest

from gpu_conv import webnn

OPERATORS = {
    "conv1d": webnn.conv1d,
    "conv2d": webnn.conv2d,
    "conv3d": webnn.conv3d,
    "convTranspose2d": webnn.conv_transpose2d,
}
DEVICES = [None, "emulator", pytest.param("cuda", marks=pytest.mark.gpu)]


def run(name, input, filter, options, device=None):
    """The operator's result as a NumPy array; on "cuda" the operands are CuPy arrays."""
    if device != "cuda":
        return OPERATORS[name](input, filter, options, device=device)
    import cupy

    moved = {key: cupy.asarray(value) if key == "bias" else value for key, value in options.items()}
    return cupy.asnumpy(OPERATORS[name](cupy.asarray(input), cupy.asarray(filter), moved))


def array(values, shape, dtype=np.float32):
    return np.array(values, dtype).reshape(shape)


COUNT = array(range(1, 10), (1, 1, 3, 3))  # 1 2 3 / 4 5 6 / 7 8 9
PAIR = array([1, 2, 3, 4], (1, 1, 2, 2))
DIAGONAL = array([1, 0, 0, 1], (1, 1, 2, 2))
RAMP = array([1, 2, 3, 4, 5], (1, 1, 1, 5))
ONES = array([1, 1, 1], (1, 1, 1, 3))

# operator, input, filter, options, the output worked out by hand
VALID = {
    "defaults": ("conv2d", COUNT, DIAGONAL, {}, [[[[1 + 5, 2 + 6], [4 + 8, 5 + 9]]]]),
    "padding": ("conv2d", PAIR, DIAGONAL, {"padding": [1, 0, 0, 1]}, [[[[2, 0], [1 + 4, 2]]]]),
    "strides": ("conv2d", COUNT, array([2], (1, 1, 1, 1)), {"strides": [1, 2]}, [[[[2, 6], [8, 12], [14, 18]]]]),
    "dilations": ("conv2d", COUNT, DIAGONAL, {"dilations": [2, 2]}, [[[[1 + 9]]]]),
    "size is rounded down": ("conv2d", RAMP, array([1, 1], (1, 1, 1, 2)), {"strides": [1, 2]}, [[[[3, 7]]]]),
    "bias": ("conv2d", COUNT, DIAGONAL, {"bias": array([100], 1)}, [[[[106, 108], [112, 114]]]]),
    "depthwise": (
        "conv2d",
        array([1, 2, 3, 4], (1, 2, 1, 2)),
        array([1, 1, 1, -1], (2, 1, 1, 2)),
        {"groups": 2},
        [[[[1 + 2]], [[3 - 4]]]],
    ),
    "a multiplier of two": (
        "conv2d",
        array([1, 2], (1, 2, 1, 1)),
        array([10, 20, 30, 40], (4, 1, 1, 1)),
        {"groups": 2},
        [[[[10]], [[20]], [[60]], [[80]]]],
    ),
    "half precision": ("conv2d", COUNT.astype(np.float16), DIAGONAL.astype(np.float16), {}, [[[[6, 8], [12, 14]]]]),
    "transposed": (
        "convTranspose2d",
        PAIR,
        array([1, 10, 100, 1000], (1, 1, 2, 2)),
        {},
        [[[[1, 10 + 2, 20], [100 + 3, 1000 + 200 + 30 + 4, 2000 + 40], [300, 3000 + 400, 4000]]]],
    ),
    "transposed with strides": ("convTranspose2d", RAMP[..., :2], ONES, {"strides": [1, 2]}, [[[[1, 1, 3, 2, 2]]]]),
    "outputPadding": (
        "convTranspose2d",
        RAMP[..., :2],
        ONES,
        {"strides": [1, 2], "outputPadding": [0, 1], "padding": [0, 0, 1, 1]},
        [[[[1, 3, 2, 2]]]],
    ),
    "outputPadding beyond the filter": (
        "convTranspose2d",
        RAMP[..., :2],
        ONES[..., :1],
        {"strides": [1, 3], "outputPadding": [0, 2], "bias": array([7], 1)},
        [[[[8, 7, 7, 9, 7, 7]]]],
    ),
    "outputSizes override outputPadding": (
        "convTranspose2d",
        RAMP[..., :2],
        ONES,
        {"strides": [1, 2], "outputSizes": [1, 6], "outputPadding": [9, 9]},
        [[[[1, 1, 3, 2, 2, 0]]]],
    ),
    "outputSizes of a calculated size below 1": (
        "convTranspose2d",
        RAMP[..., :1],
        ONES[..., :2],
        {"strides": [1, 3], "padding": [0, 0, 1, 1], "outputSizes": [1, 2]},
        [[[[1, 0]]]],
    ),
    "transposed with groups": (
        "convTranspose2d",
        array([1, 2], (1, 2, 1, 1)),
        array([10, 20, 30, 40], (2, 2, 1, 1)),
        {"groups": 2, "bias": array([1, 2, 3, 4], 4)},
        [[[[11]], [[22]], [[63]], [[84]]]],
    ),
    "one axis": ("conv1d", RAMP[0], ONES[0], {"padding": [2, 0], "strides": [2]}, [[[1, 6, 12]]]),
    "one axis, channels last": (
        "conv1d",
        array([1, 2, 3, 4], (1, 2, 2)),
        array([1, 10], (1, 2, 1)),
        {"inputLayout": "nwc", "filterLayout": "wio"},
        [[[21], [43]]],
    ),
    "three axes": (
        "conv3d",
        array(range(8), (1, 1, 2, 2, 2)),
        array([1, 0, 0, 1], (1, 1, 2, 1, 2)),
        {"padding": [0, 0, 0, 0, 0, 1], "strides": [1, 1, 1]},
        [[[[[0 + 5, 1], [2 + 7, 3]]]]],
    ),
    # What the specification had once.
    "autoPad same-upper": ("conv2d", RAMP, ONES[..., :2], {"autoPad": "same-upper"}, [[[[3, 5, 7, 9, 5]]]]),
    "autoPad same-lower": ("conv2d", RAMP, ONES[..., :2], {"auto_pad": "same-lower"}, [[[[1, 3, 5, 7, 9]]]]),
    "autoPad ignores padding": (
        "conv2d",
        RAMP,
        ONES,
        {"autoPad": "same-upper", "padding": [9, 9, 9, 9], "strides": [1, 2]},
        [[[[3, 9, 9]]]],
    ),
    "autoPad transposed": (
        "convTranspose2d",
        RAMP[..., :2],
        ONES,
        {"autoPad": "same-upper", "strides": [1, 2]},
        [[[[1, 1, 3, 2]]]],
    ),
    "autoPad explicit": ("conv2d", RAMP, ONES, {"autoPad": "explicit", "padding": [0, 0, 0, 1]}, [[[[6, 9, 12, 9]]]]),
    "activation": ("conv2d", RAMP, -ONES, {"bias": array([9], 1), "activation": "relu"}, [[[[3, 0, 0]]]]),
    "activation clamp": ("conv2d", RAMP, ONES, {"activation": ("clamp", 7, 10)}, [[[[7, 9, 10]]]]),
    "activation in camelCase": ("conv2d", RAMP, -ONES, {"activation": ("leakyRelu", 0.5)}, [[[[-3, -4.5, -6]]]]),
    "groupCount and the five-axis filter": (
        "conv2d",
        array([1, 2], (1, 2, 1, 1)),
        array([10, 20, 30, 40], (2, 2, 1, 1, 1)),  # [outputChannels / groups, groups, inputChannels / groups, 1, 1]
        {"groupCount": 2},
        [[[[10]], [[30]], [[40]], [[80]]]],
    ),
    "the five-axis filter, transposed": (
        "convTranspose2d",
        array([1, 2], (1, 2, 1, 1)),
        array([10, 20, 30, 40], (2, 2, 1, 1, 1)),
        {"group_count": 2},
        [[[[10]], [[30]], [[40]], [[80]]]],
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VALID)
def test_by_hand(name, device):
    operator, input, filter, options, want = VALID[name]
    got = run(operator, input, filter, options, device)
    assert got.dtype == input.dtype
    assert got.tolist() == want


def by_definition(input, filter, groups, strides, padding, dilations, transposed):
    """conv2d of nchw and oihw (transposed: iohw), one product after the other, in integers."""
    n, c, height, width = input.shape
    kernel, per_group = filter.shape[2:], filter.shape[1]
    out_channels = per_group * groups if transposed else filter.shape[0]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    total = [padding[0] + padding[1], padding[2] + padding[3]]
    if transposed:
        size = [(i - 1) * s + r - p for i, s, r, p in zip((height, width), strides, reach, total)]
    else:
        size = [(i + p - r) // s + 1 for i, s, r, p in zip((height, width), strides, reach, total)]
    out = np.zeros((n, out_channels, *size), np.int64)
    narrow, wide = (out, input) if transposed else (input, out)  # wide[a] meets narrow[a * stride + tap - padding]
    for a, b, i, j, channel, other in product(*map(range, (*wide.shape[2:], *kernel, wide.shape[1], narrow.shape[1]))):
        y, x = a * strides[0] + i * dilations[0] - padding[0], b * strides[1] + j * dilations[1] - padding[2]
        group = other // (narrow.shape[1] // groups)
        if group == channel // (wide.shape[1] // groups) and 0 <= y < narrow.shape[2] and 0 <= x < narrow.shape[3]:
            weight = int(filter[channel, other % (narrow.shape[1] // groups), i, j])
            for batch in range(n):
                if transposed:
                    out[batch, other, y, x] += int(input[batch, channel, a, b]) * weight
                else:
                    out[batch, channel, a, b] += int(input[batch, other, y, x]) * weight
    return out


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("operator", "input_layout", "filter_layout"),
    [
        *product(["conv2d"], ["nchw", "nhwc"], ["oihw", "hwio", "ohwi", "ihwo"]),
        *product(["convTranspose2d"], ["nchw", "nhwc"], ["iohw", "hwoi", "ohwi"]),
    ],
)
def test_layouts(operator, input_layout, filter_layout, groups):
    transposed = operator == "convTranspose2d"
    rng = np.random.default_rng(7)
    input = rng.integers(-4, 5, (2, 4, 5, 4)).astype(np.float32)
    filter = rng.integers(-4, 5, (4, 3, 2, 3) if transposed else (6, 4 // groups, 2, 3)).astype(np.float32)
    numbers = {"groups": groups, "strides": [2, 1], "padding": [1, 0, 2, 1], "dilations": [1, 2]}
    want = by_definition(input, filter, **numbers, transposed=transposed)
    axes = ["nchw".index(a) for a in input_layout]
    filter_axes = [("iohw" if transposed else "oihw").index(a) for a in filter_layout]
    options = {**numbers, "inputLayout": input_layout, "filterLayout": filter_layout}
    got = OPERATORS[operator](input.transpose(axes), filter.transpose(filter_axes), options)
    np.testing.assert_array_equal(got, want.transpose(axes))


def test_both_spellings_and_keywords_mean_the_same():
    camel = {"outputSizes": [4, 4], "inputLayout": "nchw", "filterLayout": "ohwi", "strides": [2, 2]}
    snake = {"output_sizes": (4, 4), "input_layout": "nchw", "filter_layout": "ohwi", "strides": np.array([2, 2])}
    want = webnn.conv_transpose2d(PAIR, DIAGONAL.transpose(1, 2, 3, 0), camel)
    assert webnn.conv_transpose2d(PAIR, DIAGONAL.transpose(1, 2, 3, 0), snake).tolist() == want.tolist()
    assert webnn.conv_transpose2d(PAIR, DIAGONAL.transpose(1, 2, 3, 0), **camel).tolist() == want.tolist()
    assert want[0, 0].tolist() == [[1, 0, 2, 0], [0, 1, 0, 2], [3, 0, 4, 0], [0, 3, 0, 4]]


def test_none_is_the_default():
    options = dict.fromkeys(("padding", "strides", "dilations", "groups", "inputLayout", "bias", "label", "autoPad"))
    assert webnn.conv2d(COUNT, DIAGONAL, options).tolist() == VALID["defaults"][-1]


def test_options_of_the_package():
    out = np.full((1, 1, 2, 2), np.nan, np.float32)
    assert webnn.conv2d(COUNT, DIAGONAL, out=out, device="emulator", kernel="direct", precision="ieee") is out
    assert out.tolist() == VALID["defaults"][-1]


@pytest.mark.peers
def test_tensors_of_another_library():
    import torch

    x = torch.tensor(RAMP)
    got = webnn.conv2d(x, torch.tensor(ONES), {"bias": torch.ones(1), "padding": [0, 0, 1, 1]})
    assert isinstance(got, torch.Tensor)
    assert got.tolist() == [[[[4, 7, 10, 13, 10]]]]
    with pytest.raises(TypeError, match=r"\[a\] conv2d: all arrays .* input is a torch array, filter is a numpy array"):
        webnn.conv2d(x, ONES, label="a")
