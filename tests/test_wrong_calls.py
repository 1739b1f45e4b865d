"""Every wrong call raises the documented type, and its message names what was passed and the rule."""

import numpy as np
import pytest

import gpu_conv

F32 = np.float32


def array(*shape, dtype=F32):
    return np.ones(shape, dtype)


X, W = array(1, 6, 8, 8), array(4, 6, 3, 3)
W2 = array(4, 3, 3, 3)
XT, WT = array(1, 6, 5, 5), array(6, 2, 3, 3)
READ_ONLY = array(1, 4, 6, 6)
READ_ONLY.flags.writeable = False
SHARED = np.ones(4000, F32)
HUGE = np.broadcast_to(F32(1), (1, 1, 2**40, 2**20))


def conv(x=X, w=W, bias=None, **options):
    return lambda: gpu_conv.conv(x, w, bias, **options)


def transpose(x=XT, w=WT, bias=None, **options):
    return lambda: gpu_conv.conv_transpose(x, w, bias, **options)


BOTH_SHAPES = r"x \(1, 6, 8, 8\) \(nchw\) and w \(4, 6, 3, 3\) \(oihw\)"

WRONG = {
    # shapes and groups
    "groups do not match w": (
        conv(groups=2),
        ValueError,
        rf"groups=2 needs c of x == groups \* i of w; got {BOTH_SHAPES}",
    ),
    "groups do not divide o": (
        conv(array(1, 9, 8, 8), array(4, 3, 3, 3), groups=3),
        ValueError,
        "o of w % groups == 0",
    ),
    "groups zero": (conv(groups=0), ValueError, "groups must be at least 1, got 0"),
    "groups negative": (conv(groups=-1), ValueError, "groups must be at least 1, got -1"),
    "groups float": (conv(groups=2.0), TypeError, "groups must be an integer, got 2.0"),
    "groups bool": (conv(groups=True), TypeError, "groups must be an integer, got True"),
    "both group kinds": (conv(groups=2, batch_groups=2), ValueError, "cannot both exceed 1"),
    "batch groups do not divide": (conv(array(3, 6, 8, 8), batch_groups=2), ValueError, "n of x % batch_groups == 0"),
    "channels differ": (conv(array(1, 5, 8, 8)), ValueError, r"c of x == groups \* i of w; got x \(1, 5, 8, 8\)"),
    "channels differ nhwc": (conv(array(1, 8, 8, 5), input_layout="nhwc"), ValueError, r"x \(1, 8, 8, 5\) \(nhwc\)"),
    "filter rank": (conv(w=array(4, 6, 3)), ValueError, r"4 axes of its layout; got x .* w \(4, 6, 3\) \(oihw\)"),
    "filter size zero": (conv(w=array(4, 6, 0, 3)), ValueError, "filter sizes must be at least 1"),
    "no channel axis": (conv(array(6), array(4)), ValueError, r"x needs a batch and a channel axis, got x \(6,\)"),
    "five-axis filter, wrong g": (
        conv(w=array(2, 3, 2, 3, 3), groups=2, filter_layout="ogihw"),
        ValueError,
        "the g axis of w must equal groups=2",
    ),
    "conv1d rank": (
        lambda: gpu_conv.conv1d(X, W),
        ValueError,
        r"conv1d needs an input with 3 axes \(ncw\), got x \(1, 6",
    ),
    "conv2d rank": (
        lambda: gpu_conv.conv2d(array(1, 6, 8), W),
        ValueError,
        r"conv2d needs an input with 4 axes \(nchw\)",
    ),
    "conv3d rank": (lambda: gpu_conv.conv3d(X, W), ValueError, r"conv3d needs an input with 5 axes \(ncdhw\)"),
    "too many axes": (conv(array(*(1,) * 14), array(*(1,) * 14)), ValueError, "at most 10"),
    # strides, padding, dilations
    "strides zero": (conv(strides=0), ValueError, "strides must be at least 1, got 0"),
    "strides negative": (conv(strides=(1, -2)), ValueError, r"strides\[1\] must be at least 1, got -2"),
    "strides count": (conv(strides=(1, 1, 1)), ValueError, "strides needs one value per spatial axis: 2, got 3"),
    "strides float": (conv(strides=1.5), TypeError, "strides must be an integer, got 1.5"),
    "strides NaN": (conv(strides=float("nan")), TypeError, "strides must be an integer, got nan"),
    "strides string": (conv(strides="12"), TypeError, "strides must be an integer or a sequence"),
    "strides None": (conv(strides=None), TypeError, "strides must be an integer, got None"),
    "strides overflow": (conv(strides=2**70), ValueError, "strides must fit in 64 bits"),
    "dilations zero": (conv(dilations=0), ValueError, "dilations must be at least 1, got 0"),
    "input dilations zero": (conv(input_dilations=(1, 0)), ValueError, r"input_dilations\[1\] must be at least 1"),
    "padding name": (
        conv(padding="same"),
        ValueError,
        "padding='same' is unknown; known are valid, same_upper, same_lower",
    ),
    "padding count": (conv(padding=(1, 1, 1, 1)), ValueError, r"one \(lo, hi\) pair per spatial axis: 2, got"),
    "padding triple": (
        conv(padding=((1, 1, 1), 0)),
        ValueError,
        r"padding\[0\] must be one integer or a \(lo, hi\) pair",
    ),
    "padding NaN": (conv(padding=((0, float("nan")), 0)), TypeError, r"padding\[0\]\[1\] must be an integer, got nan"),
    "padding infinite": (conv(padding=float("inf")), TypeError, "padding must be an integer, got inf"),
    "output overflow": (conv(padding=2**62), ValueError, r"exceeds 2\^63 - 1 bytes"),
    "output overflow 2": (conv(HUGE, array(1, 1, 1, 1), input_dilations=8), ValueError, r"exceeds 2\^63 - 1 bytes"),
    # layouts
    "layout unknown": (conv(input_layout="nchx"), ValueError, "input_layout='nchx' must be a permutation of 'nchw'"),
    "layout rank": (conv(input_layout="ncw"), ValueError, "must be a permutation of 'nchw' for 2 spatial axes"),
    "layout upper case": (conv(input_layout="NCHW"), ValueError, "input_layout='NCHW' must be a permutation"),
    "layout type": (conv(input_layout=3), TypeError, "input_layout must be a string like 'nchw', got 3"),
    "filter layout": (conv(filter_layout="oihx"), ValueError, "filter_layout='oihx' must be a permutation of 'oihw'"),
    "output layout": (conv(output_layout="hw"), ValueError, "output_layout='hw' must be a permutation of 'nchw'"),
    # dtypes and kinds
    "list": (conv([[1.0]]), TypeError, "x must be a NumPy or CuPy array, got builtins.list"),
    "None filter": (conv(w=None), TypeError, "w must be a NumPy or CuPy array, got builtins.NoneType"),
    "bool": (conv(X.astype(bool), W.astype(bool)), TypeError, "x has dtype bool"),
    "object": (conv(X.astype(object), W.astype(object)), TypeError, "x has dtype object"),
    "byte order": (conv(X.astype(">f4"), W), TypeError, "foreign byte order"),
    "mixed floats": (conv(X.astype(np.float16)), TypeError, "must have one dtype .*got x float16 and w float32"),
    "float and integer": (conv(w=W.astype(np.int8)), TypeError, "got x float32 and w int8"),
    "out_dtype kind": (conv(out_dtype=np.int32), TypeError, "a convolution of float32 cannot give int32"),
    "out_dtype nonsense": (conv(out_dtype="float99"), TypeError, "out_dtype='float99' is not a dtype"),
    "precision": (conv(precision="fast"), ValueError, r"precision must be one of \('ieee', 'tf32'\), got 'fast'"),
    # bias, residual, out
    "bias shape": (
        conv(bias=array(6)),
        ValueError,
        r"bias must have the shape \(4,\), one per output channel, or .* got \(6,\)",
    ),
    "bias rank": (conv(bias=array(1, 4)), ValueError, r"bias must have the shape \(4,\)"),
    "bias dtype": (conv(bias=np.ones(4, np.int32)), TypeError, "bias must be floating like the float32 sum, got int32"),
    "bias kind": (conv(bias=[1, 2, 3, 4]), TypeError, "bias must be a NumPy or CuPy array, got builtins.list"),
    "residual shape": (
        conv(residual=array(1, 4, 8, 8)),
        ValueError,
        r"residual must have the shape .*\(1, 4, 6, 6\) \(nchw\)",
    ),
    "residual dtype": (
        conv(residual=np.ones((1, 4, 6, 6))),
        TypeError,
        "residual must have the dtype of the output, float32",
    ),
    "out shape": (conv(out=array(1, 4, 6, 5)), ValueError, r"out must have the shape of the output \(1, 4, 6, 6\)"),
    "out dtype": (
        conv(out=np.ones((1, 4, 6, 6)), out_dtype=F32),
        TypeError,
        "out must have the dtype of the output, float32",
    ),
    "out read-only": (conv(out=READ_ONLY), ValueError, "out is read-only"),
    "out is x": (
        conv(SHARED[:384].reshape(1, 6, 8, 8), out=SHARED[200:344].reshape(1, 4, 6, 6)),
        ValueError,
        "out must not share memory",
    ),
    # activations
    "activation name": (conv(activation="swish"), ValueError, "activation 'swish' is unknown; known are relu"),
    "activation type": (conv(activation=3), TypeError, "activation must be None, a name or"),
    "clip without bounds": (conv(activation="clip"), ValueError, "activation 'clip' needs the parameters"),
    "clip reversed": (conv(activation=("clip", 6, 0)), ValueError, "needs lo <= hi, got lo=6.0 and hi=0.0"),
    "clip NaN": (conv(activation=("clip", float("nan"), 0)), ValueError, "must not be NaN"),
    "clip text": (conv(activation=("clip", "0", 1)), TypeError, "must be numbers"),
    "too many parameters": (conv(activation=("relu", 1)), ValueError, "takes 0 parameters"),
    "sigmoid of integers": (
        conv(X.astype(np.int8), W.astype(np.int8), activation="sigmoid"),
        TypeError,
        "activation 'sigmoid' is not defined for int32 sums",
    ),
    # zero points
    "zero point of floats": (conv(x_zero_point=1), TypeError, "x_zero_point needs int8 or uint8 inputs, got float32"),
    "zero point kind": (
        conv(X.astype(np.int8), W.astype(np.int8), x_zero_point=0.5),
        TypeError,
        "x_zero_point must be an integer, got 0.5",
    ),
    "zero point per channel": (
        conv(X.astype(np.int8), W.astype(np.int8), w_zero_point=np.zeros(3, np.int8)),
        ValueError,
        r"a scalar or \(4,\), one per output channel, got the shape \(3,\)",
    ),
    "zero point range": (
        conv(X.astype(np.int8), W.astype(np.int8), x_zero_point=128),
        ValueError,
        "x_zero_point must be in the range of int8, got 128",
    ),
    # devices and kernels
    "device": (conv(device="gpu"), ValueError, "device must be None or one of cpu, cuda, emulator, got 'gpu'"),
    "device cuda": (conv(device="cuda"), TypeError, "device='cuda' computes on cupy arrays, got numpy arrays"),
    "kernel on the CPU": (conv(kernel="direct"), ValueError, "kernel='direct' names a CUDA kernel"),
    "kernel unknown": (
        conv(kernel="winograd", device="emulator"),
        ValueError,
        "kernel='winograd' is unknown; known are",
    ),
    # transposed
    "transposed channels": (
        transpose(array(1, 5, 5, 5)),
        ValueError,
        r"c of x == i of w; got x \(1, 5, 5, 5\) \(nchw\) and w",
    ),
    "transposed groups": (transpose(groups=4), ValueError, "groups=4 needs i of w % groups == 0"),
    "transposed bias": (transpose(bias=array(6)), ValueError, r"bias must have the shape \(2,\)"),
    "output padding": (
        transpose(strides=2, output_padding=2),
        ValueError,
        r"output_padding\[0\]=2 must be smaller than strides",
    ),
    "output padding negative": (transpose(output_padding=-1), ValueError, "output_padding must be at least 0"),
    "output sizes": (
        transpose(strides=2, output_sizes=(13, 11)),
        ValueError,
        r"must lie within .* = \(\(11, 12\), \(11, 12\)\)",
    ),
    "output sizes and padding": (transpose(strides=2, output_sizes=(12, 12), output_padding=1), ValueError, "not both"),
    "transposed all cropped": (transpose(padding=4), ValueError, "the output would have the spatial size"),
    "transposed strides": (transpose(strides=0), ValueError, "strides must be at least 1, got 0"),
    # layers
    "layer residual": (
        lambda: gpu_conv.Conv(W, residual=X),
        TypeError,
        r"belongs to a call of the layer: layer\(x, residual=",
    ),
    "layer input": (lambda: gpu_conv.Conv(W)(array(1, 5, 8, 8)), ValueError, "c of x == groups"),
    "layer list": (lambda: gpu_conv.Conv(W)([1.0]), TypeError, "x must be a NumPy or CuPy array"),
    "layer out is x": (
        lambda: gpu_conv.Conv(array(1, 1, 1, 1))(SHARED.reshape(1, 1, 40, 100), out=SHARED.reshape(1, 1, 40, 100)),
        ValueError,
        "out must not share memory",
    ),
}


def test_the_table_is_long_enough():
    assert len(WRONG) >= 60


@pytest.mark.parametrize("name", WRONG)
def test_wrong_call(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_nothing_is_written_before_an_error():
    out = np.full((1, 4, 6, 6), 7, F32)
    with pytest.raises(ValueError, match="bias"):
        gpu_conv.conv(X, W, array(3), out=out)
    assert (out == 7).all()
