"""Operators and layer of several convolutions: what runs in one launch, and that it equals the convolutions."""

from functools import partial

import numpy as np
import pytest

import gpu_conv
from gpu_conv import execute
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.families import inverted_residual
from tests.kernels.chains import block
from tests.kernels.checking import numbers


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"strides": 2}, {"padding": "same_upper", "strides": 2}])
def test_operator(options):
    """On the emulator in one launch, on NumPy as three convolutions: the same numbers."""
    made = block((8, 10), (16, 48, 16), **options)
    call = partial(gpu_conv.inverted_residual, made.x, *made.filters, input_layout="nhwc", **made.options)
    recorder = execute.Recorder(KNOWN_TARGETS["sm_80"])
    with execute.instead(recorder):
        call()
    assert [launch.kernel for launch in recorder.launches] == ["inverted_residual"]
    truth, _ = made.truth(rounded=True)
    for device in ("emulator", "cpu"):
        out = np.full(truth.shape, np.nan, "float16")
        assert call(device=device, out=out) is out
        np.testing.assert_array_equal(out.astype(float), truth)


def test_operator_falls_back_to_three_convolutions():
    """Channels first, another dtype, another filter: what the kernel refuses."""
    made = block((6, 5), (8, 24, 8), dtype="float32", residual=True)
    truth, _ = made.truth(rounded=True)
    x = np.ascontiguousarray(np.moveaxis(made.x, -1, 1))
    y = gpu_conv.inverted_residual(x, *made.filters, **made.options)
    np.testing.assert_array_equal(np.moveaxis(y, 1, -1), truth)
    recorder = execute.Recorder(KNOWN_TARGETS["sm_80"])
    with execute.instead(recorder):
        gpu_conv.inverted_residual(x, *made.filters, **made.options)
    assert len(recorder.launches) == 3


def test_operator_without_expansion():
    made = block((6, 5), (8, 8, 16), expand=False)
    y = gpu_conv.inverted_residual(made.x, *made.filters, input_layout="nhwc", device="emulator", **made.options)
    np.testing.assert_array_equal(y.astype(float), made.truth(rounded=True)[0])


def test_layer_packs_once(monkeypatch):
    """However many calls and input shapes there are: one copy for each size of the slabs."""
    made = block((8, 10), (16, 48, 16), residual=True)
    packed = []
    weights = inverted_residual.weights
    monkeypatch.setattr(inverted_residual, "weights", lambda *a: packed.append(a[1]) or weights(*a))
    layer = gpu_conv.InvertedResidual(*made.filters, input_layout="nhwc", device="emulator", **made.options)
    truth, _ = made.truth(rounded=True)
    out = np.full(truth.shape, np.nan, "float16")
    assert layer.in_one_launch(made.x)
    np.testing.assert_array_equal(layer(made.x).astype(float), truth)
    assert layer(made.x, out=out) is out
    np.testing.assert_array_equal(out.astype(float), truth)
    np.testing.assert_array_equal(layer(np.concatenate([made.x, made.x])).astype(float), np.concatenate([truth] * 2))
    assert len(packed) == len({tile.slab for tile in packed})
    bound = layer.bind(made.x, out=out)
    made.x[...] = 0
    out[...] = np.nan
    assert bound() is out
    np.testing.assert_array_equal(out.astype(float), made.truth(rounded=True)[0])
    with pytest.raises(ValueError, match="out must not share memory"):
        layer(made.x, out=made.x)


def test_layer_on_numpy():
    made = block((6, 5), (8, 24, 8), dtype="float32", residual=True)
    layer = gpu_conv.InvertedResidual(*made.filters, input_layout="nhwc", **made.options)
    assert not layer.in_one_launch(made.x)
    for found in (layer(made.x), layer(made.x), layer.bind(made.x)()):
        np.testing.assert_array_equal(found, made.truth(rounded=True)[0])


@pytest.mark.parametrize(
    ("more", "launches"),
    [
        ({}, 1),
        ({"residual": "x"}, 1),
        ({"residual": "other"}, 2),
        ({"output_layout": "nchw"}, 2),
        ({"dilations": 2}, 2),
    ],
)
def test_depthwise_separable(more, launches):
    """In one launch where the kernel takes it; the residual is x itself or another array."""
    made = block((8, 8), (16, 16, 16), expand=False)
    other = numbers(made.x.shape, "float16", np.random.default_rng(5), True)
    residual = {"x": made.x, "other": other}.get(more.get("residual"))
    options = {
        "depthwise_bias": made.options["depthwise_bias"],
        "depthwise_activation": "relu6",
        "input_layout": "nhwc",
    }
    options |= {"padding": more.get("dilations", 1)} | more | {"residual": residual, "bias": made.options["bias"]}
    call = partial(gpu_conv.depthwise_separable_conv2d, made.x, *made.filters[1:], activation="relu", **options)
    recorder = execute.Recorder(KNOWN_TARGETS["sm_80"])
    with execute.instead(recorder):
        call()
    assert len(recorder.launches) == launches
    middle = gpu_conv.conv2d(
        made.x,
        made.filters[1],
        options["depthwise_bias"],
        groups=16,
        activation="relu6",
        **{k: v for k, v in options.items() if k in ("padding", "dilations", "input_layout")},
    )
    wanted = gpu_conv.conv2d(
        middle,
        made.filters[2],
        options["bias"],
        activation="relu",
        **{k: v for k, v in options.items() if k in ("residual", "output_layout", "input_layout")},
    )
    for device in ("emulator", "cpu"):
        np.testing.assert_array_equal(call(device=device), wanted)
