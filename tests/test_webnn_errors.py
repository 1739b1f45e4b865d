"""Every condition that WebNN's specification sets: its order, its words, always a TypeError."""

from itertools import combinations

import numpy as np
import pytest

from gpu_conv import webnn

OPERATORS = {"conv2d": webnn.conv2d, "convTranspose2d": webnn.conv_transpose2d}
COUNT = np.zeros((1, 1, 3, 3), np.float32)

# A valid call, and what breaks it: one change for every condition, in the order in which they are checked.
CONV = {
    "input": np.zeros((2, 4, 5, 5), np.float32),
    "filter": np.zeros((6, 2, 3, 3), np.float32),
    "bias": np.zeros(6, np.float32),
    "groups": 2,
    "label": "layer 7",
}
CONVERSION = [
    ("autoPad must be one of explicit, same-upper, same-lower, got 'same'", {"autoPad": "same"}),
    ("outputPadding[0] must be an unsigned long, 0 to 4294967295, got 1.5", {"outputPadding": [1.5, 0]}),
    ("activation 'swish' is unknown; known are relu, ", {"activation": "swish"}),
]
LISTS = [
    (
        "padding's size must be 4, [beginningHeight, endingHeight, beginningWidth, endingWidth], got [1, 1]",
        {"padding": [1, 1]},
    ),
    ("strides's size must be 2, [strideHeight, strideWidth], got [2]", {"strides": [2]}),
    ("no item of strides may be 0, got [1, 0]", {"strides": [1, 0]}),
    ("dilations's size must be 2, [dilationHeight, dilationWidth], got [1, 1, 1]", {"dilations": [1, 1, 1]}),
    ("no item of dilations may be 0, got [0, 1]", {"dilations": [0, 1]}),
]
CONV_BROKEN = [
    ("input must be a NumPy or CuPy array, got builtins.list", {"input": [[1.0]]}),
    (
        "filter's dimensions and their product must be 1 to 2147483647, got float32[6, 2, 3, 0]",
        {"filter": np.zeros((6, 2, 3, 0), np.float32)},
    ),
    (
        "input's data type must be one of float32, float16, got int32[2, 4, 5, 5]",
        {"input": np.zeros((2, 4, 5, 5), np.int32)},
    ),
    ("input's rank must be 4 (nchw, nhwc), got float32[4, 5, 5]", {"input": np.zeros((4, 5, 5), np.float32)}),
    (
        "filter's rank must be 4 (oihw, hwio, ohwi, ihwo), got float32[3, 3]",
        {"filter": np.zeros((3, 3), np.float32)},
    ),
    (
        "filter's data type must be input's float32, got float16[6, 2, 3, 3]",
        {"filter": np.zeros((6, 2, 3, 3), np.float16)},
    ),
    *LISTS,
    ("groups must not be 0", {"groups": 0}),
    (
        "inputChannels 4 % groups 3 must be 0; got input float32[2, 4, 5, 5] (nchw), filter float32[6, 2, 3, 3] (oihw) "
        "and groups 3",
        {"groups": 3},
    ),
    (
        "inputChannels / groups = 2 must equal filterInputChannels 4",
        {"filter": np.zeros((6, 4, 3, 3), np.float32)},
    ),
    ("outputChannels 5 % groups 2 must be 0", {"filter": np.zeros((5, 2, 3, 3), np.float32)}),
    ("bias's shape must be [outputChannels] = [6], got float32[1, 6]", {"bias": np.zeros((1, 6), np.float32)}),
    ("bias's data type must be input's float32, got float64[6]", {"bias": np.zeros(6)}),
    (
        "outputHeight must be a valid dimension, 1 to 2147483647, got 0 = floor((inputHeight 5 - effectiveFilterHeight "
        "11 + beginningPadding 2 + endingPadding 3) / strideHeight 1) + 1",
        {"dilations": [5, 1], "padding": [2, 3, 0, 0]},
    ),
    ("outputWidth must be a valid dimension, 1 to 2147483647, got -8589934585 =", {"dilations": [1, 4294967295]}),
]
TRANSPOSED = {**CONV, "filter": np.zeros((4, 3, 3, 3), np.float32), "strides": [2, 2]}
TRANSPOSED_BROKEN = [
    ("bias's dimensions and their product must be 1 to 2147483647, got float32[0]", {"bias": np.zeros(0, np.float32)}),
    ("input's rank must be 4 (nchw, nhwc), got float32[5, 5]", {"input": np.zeros((5, 5), np.float32)}),
    (
        "input's data type must be one of float32, float16, got float64[2, 4, 5, 5]",
        {"input": np.zeros((2, 4, 5, 5))},
    ),
    (
        "filter's rank must be 4 (iohw, hwoi, ohwi), got float32[1, 1, 1, 1, 3, 3]",
        {"filter": np.zeros((1, 1, 1, 1, 3, 3), np.float32)},
    ),
    ("filter's data type must be input's float32, got int8[4, 3, 3, 3]", {"filter": np.zeros((4, 3, 3, 3), np.int8)}),
    *LISTS,
    (
        "outputPadding's size must be 2, [outputPaddingHeight, outputPaddingWidth], got [1]",
        {"outputPadding": [1]},
    ),
    ("outputSizes's size must be 2, [outputHeight, outputWidth], got [11]", {"outputSizes": [11]}),
    (
        "outputPadding [0, 2] must be smaller than strides [2, 2] on every axis",
        {"outputPadding": [0, 2], "outputSizes": None},  # which would override it
    ),
    ("groups must not be 0", {"groups": 0}),
    (
        "inputChannels 4 must equal filterInputChannels 2",
        {"filter": np.zeros((2, 3, 3, 3), np.float32)},
    ),
    (
        "outputChannels must be a valid dimension, 1 to 2147483647, got 12884901885 = filterOutputChannels 3 * groups "
        "4294967295",
        {"groups": 4294967295},
    ),
    ("inputChannels 4 % groups 3 must be 0", {"groups": 3}),
    ("bias's shape must be [outputChannels] = [6], got float32[3]", {"bias": np.zeros(3, np.float32)}),
    ("bias's data type must be input's float32, got float16[6]", {"bias": np.zeros(6, np.float16)}),
    (
        "outputSizes[1] must be at least 11 and less than 13, got 13; 11 = (inputWidth 5 - 1) * strideWidth 2 + "
        "effectiveFilterWidth 3 - beginningPadding 0 - endingPadding 0",
        {"outputSizes": [11, 13]},
    ),
    (
        "outputWidth must be a valid dimension, 1 to 2147483647, got -1 = (inputWidth 5 - 1) * strideWidth 2 + "
        "effectiveFilterWidth 3 - beginningPadding 6 - endingPadding 6 + outputPadding 0",
        {"padding": [0, 0, 6, 6]},
    ),
]


def failure(operator, call):
    options = {name: value for name, value in call.items() if name not in ("input", "filter")}
    with pytest.raises(TypeError) as caught:
        OPERATORS[operator](call["input"], call["filter"], options)
    return str(caught.value)


STEPS = [
    *[("conv2d", CONV, CONV_BROKEN, i) for i in range(len(CONV_BROKEN))],
    *[("convTranspose2d", TRANSPOSED, TRANSPOSED_BROKEN, i) for i in range(len(TRANSPOSED_BROKEN))],
    *[("convTranspose2d", TRANSPOSED, CONVERSION, i) for i in range(len(CONVERSION))],
]


@pytest.mark.parametrize(("operator", "valid", "broken", "i"), STEPS)
def test_conditions(operator, valid, broken, i):
    message, change = broken[i]
    assert failure(operator, valid | change).startswith(f"[layer 7] {operator}: {message}")


@pytest.mark.parametrize(
    ("operator", "valid", "broken"),
    [("conv2d", CONV, CONV_BROKEN), ("convTranspose2d", TRANSPOSED, TRANSPOSED_BROKEN)],
)
def test_the_first_broken_condition_is_reported(operator, valid, broken):
    assert OPERATORS[operator](valid["input"], valid["filter"], bias=valid["bias"], groups=2).any() == 0
    for (message, first), (_, second) in combinations(broken, 2):
        if not first.keys() & second.keys():
            assert failure(operator, valid | second | first).startswith(f"[layer 7] {operator}: {message[:20]}")


OTHER_ERRORS = {
    "no mapping": (lambda: webnn.conv2d(COUNT, COUNT, [1, 1]), "conv2d: options must be a mapping"),
    "unknown option": (
        lambda: webnn.conv2d(COUNT, COUNT, {"outputPadding": [0, 0]}),
        "conv2d: unknown option 'outputPadding'; known are padding, strides,",
    ),
    "given twice": (
        lambda: webnn.conv2d(COUNT, COUNT, {"inputLayout": "nchw"}, input_layout="nchw"),
        "conv2d: the option inputLayout is given twice, the second time as 'input_layout'",
    ),
    "both names of groups": (
        lambda: webnn.conv2d(COUNT, COUNT, groups=1, groupCount=1),
        "conv2d: the option groups is given twice, the second time as 'groupCount'",
    ),
    "label": (lambda: webnn.conv2d(COUNT, COUNT, label=7), "conv2d: label must be a string, got 7"),
    "a number for a list": (
        lambda: webnn.conv2d(COUNT, COUNT, strides=2),
        "conv2d: strides must be a sequence of unsigned long, got 2",
    ),
    "negative": (
        lambda: webnn.conv2d(COUNT, COUNT, padding=[-1, 0, 0, 0], label="a"),
        "[a] conv2d: padding[0] must be an unsigned long, 0 to 4294967295, got -1",
    ),
    "layout": (
        lambda: webnn.conv2d(COUNT, COUNT, filterLayout="iohw"),
        "conv2d: filterLayout must be one of oihw, hwio, ohwi, ihwo, got 'iohw'",
    ),
    "mixed libraries are named in WebNN's words": (
        lambda: webnn.conv2d(COUNT, [1]),
        "conv2d: filter must be a NumPy or CuPy array",
    ),
    "five axes and another layout": (
        lambda: webnn.conv2d(COUNT, COUNT[None], filterLayout="hwio"),
        "conv2d: filter's rank must be 4 (oihw, hwio, ohwi, ihwo), got float32[1, 1, 1, 3, 3]",
    ),
    "five axes and other groups": (
        lambda: webnn.conv2d(np.zeros((1, 4, 3, 3), np.float32), np.zeros((1, 2, 2, 3, 3), np.float32)),
        "conv2d: the grouped filter must be [outputChannels / groups, groups, inputChannels / groups, height, width]",
    ),
    "sizes of a padding chosen automatically": (
        lambda: webnn.conv_transpose2d(COUNT, COUNT, autoPad="same-upper", strides=[2, 2], outputSizes=[6, 8]),
        "convTranspose2d: outputSizes[1] must be at least 6 and less than 8, got 8; 6 = inputWidth 3 * strideWidth 2",
    ),
    "one axis": (
        lambda: webnn.conv1d(COUNT, COUNT),
        "conv1d: input's rank must be 3 (ncw, nwc), got float32[1, 1, 3, 3]",
    ),
    "three axes": (
        lambda: webnn.conv3d(COUNT[None], COUNT[None], padding=[0, 0, 0, 0]),
        "conv3d: padding's size must be 6, [beginningDepth, endingDepth, beginningHeight,",
    ),
    "the depth": (
        lambda: webnn.conv3d(COUNT[None], np.zeros((1, 1, 2, 3, 3), np.float32)),
        "conv3d: outputDepth must be a valid dimension, 1 to 2147483647, got 0 = floor((inputDepth 1 -",
    ),
}


@pytest.mark.parametrize("name", OTHER_ERRORS)
def test_other_errors(name):
    call, message = OTHER_ERRORS[name]
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value).startswith(message)
