"""Blocks of three convolutions by rows on NumPy, against the float64 reference of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpu_conv
from gpu_conv import arguments, reference
from gpu_conv.cpu import chain, depthwise, scratch
from gpu_conv.onnx import load
from gpu_conv.testing.tolerance import assert_close

from . import graph_models as gm
from .graph_models import assert_agrees, normal, steps


def layers(calls: list[Any]) -> list[Any]:
    return [(call.problem, call.operands["w"], call.operands["bias"]) for call in calls]


def three(x: Any, filters: Any, biases: Any, options: Any, residual: bool = False) -> list[Any]:
    """The calls, each of the result before."""
    calls: list[Any] = []
    for i, (w, bias, more) in enumerate(zip(filters, biases, options, strict=True)):
        rest = {"residual": x} if residual and i == 2 else {}
        calls.append(arguments.prepare(calls[-1].result if calls else x, w, bias, input_layout="nhwc", **more, **rest))
    return calls


def expected(calls: list[Any]) -> Any:
    """The last result from float64, every one rounded; then NaN is left everywhere."""
    for call in calls:
        call.operands["y"][...] = reference.convolve(call.problem, call.operands)
    result = calls[-1].result.copy()
    for call in calls:
        call.result.fill(np.nan)
    return result


def random_calls(rng: np.random.Generator) -> list[Any]:
    """Three convolutions of small integers, with every option at random; they need not fit together."""

    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    def pads(most: int) -> tuple[tuple[int, int], ...]:
        return tuple((int(lo), int(hi)) for lo, hi in rng.integers(0, most + 1, (2, 2)))

    def integers(*shape: int) -> Any:
        return rng.integers(-3, 4, shape).astype(dtype)

    dtype = pick("float32", "float32", "float64")
    n, h, w, c, e, m = (int(rng.integers(1, most)) for most in (3, 15, 15, 4, 6, 3))
    first, middle = pick((1, 1), (1, 1), (3, 3), (3, 2)), pick((3, 3), (3, 3), (1, 1), (5, 2), (2, 4))
    o = c if rng.random() < 0.5 else int(rng.integers(1, 6))
    strides = pick((1, 1), (1, 1), (2, 2), (2, 1), (1, 3), (3, 3))
    options = [
        {"strides": pick(1, 1, 2), "padding": 0 if first == (1, 1) else pads(2), "activation": pick(None, "relu6")},
        {"strides": strides, "padding": pads(3), "dilations": pick(1, 1, (2, 1)), "groups": e, "activation": "relu"},
        {"activation": pick(None, ("clip", -5, 9))},
    ]
    filters = integers(e, c, *first), integers(e * m, 1, *middle), integers(o, e * m, 1, 1)
    biases = [integers(len(f)) if rng.random() < 0.8 else None for f in filters]
    x = integers(n, h, w, c)
    calls = three(x, filters, biases, options)
    return three(x, filters, biases, options, residual=True) if calls[-1].result.shape == x.shape else calls


@pytest.mark.parametrize("seed", range(60))
def test_random_chains_exactly(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(chain, "LARGE", 0)
    monkeypatch.setattr(chain, "ROWS", int(rng.choice([1, 60, 400, 100_000])))
    monkeypatch.setattr(depthwise, "WIDE", int(rng.choice([1, 128])))
    monkeypatch.setattr(depthwise, "BLOCK", int(rng.choice([40, 1 << 17])))
    done = 0
    while done < 4:
        try:
            calls = random_calls(rng)
        except ValueError:  # the filter does not fit into the image
            continue
        if chain.refuses(layers(calls)):
            continue
        wanted = expected(calls)
        bound = chain.Chain(layers(calls)).bind(calls[0].operands["x"], calls[-1].operands["y"])
        for _ in range(2):
            scratch.thread_block().fill(255)  # NaN
            bound()
            np.testing.assert_array_equal(calls[-1].result, wanted, str([call.problem for call in calls]))
        done += 1


SHAPES = {"x": (1, 56, 56, 8), "expand": (48, 8, 1, 1), "depthwise": (48, 1, 3, 3), "project": (8, 48, 1, 1)}


def block(rng: np.random.Generator, size: int, stride: int, **changed: Any) -> list[Any]:
    """A block of MobileNetV2, large enough to go row by row."""
    shapes, residual = SHAPES | {"x": (1, size, size, 8)}, stride == 1 and not changed
    x, *filters = (changed.pop(name, rng.standard_normal(s).astype(np.float32)) for name, s in shapes.items())
    biases = [rng.standard_normal(len(w)).astype(w.dtype) for w in filters]
    options: list[dict[str, Any]] = [{"activation": "relu6"}, {"activation": "relu6"}, {}]
    options[1] |= {"strides": stride, "padding": 1, "groups": 48} | changed.pop("middle", {})
    options[0] |= changed.pop("first", {})
    options[2] |= changed.pop("last", {})
    assert not changed
    return three(x, filters, biases, options, residual)


@pytest.mark.parametrize("stride", [1, 2])
def test_normal_numbers_within_the_tolerance(stride: int) -> None:
    calls = block(np.random.default_rng(0), 56, stride)
    assert chain.refuses(layers(calls)) is None
    chain.Chain(layers(calls)).bind(calls[0].operands["x"], calls[-1].operands["y"])()
    got = calls[-1].operands["y"].copy()
    for call in calls[:-1]:  # the middle is rounded as the chain rounds it, or by one unit more
        call.operands["y"][...] = reference.convolve(call.problem, call.operands)
    last = calls[-1]
    assert_close(got, last.problem, last.operands)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_special_value_reaches_its_receptive_field_only(value: float) -> None:
    calls = block(np.random.default_rng(1), 56, 1)
    call, last = calls[0], calls[-1]
    bound = chain.Chain(layers(calls)).bind(call.operands["x"], last.operands["y"])
    bound()
    before = last.result.copy()
    call.operands["x"][0, 0, :, 20, 30] = value
    bound()
    changed = (last.result != before).any(axis=(0, 3))
    assert not changed[:19].any() and not changed[22:].any() and not changed[:, :29].any() and not changed[:, 32:].any()
    assert not np.isfinite(last.result[0, 20, 30]).any()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "small": ({"x": np.ones((1, 20, 20, 8), np.float32)}, "elements"),
    "strides": ({"first": {"strides": 2}, "middle": {"strides": 2}}, "without"),
    "cropped": ({"middle": {"padding": ((-1, 1), (1, 1))}}, "left out"),
    "strided last": ({"last": {"strides": 2}}, "left out"),
    "dense": ({"middle": {"groups": 1}, "depthwise": np.ones((48, 48, 3, 3), np.float32)}, "depthwise"),
    "infinite": ({"depthwise": np.full((48, 1, 3, 3), np.inf, np.float32)}, "infinite"),
    "wider": ({"last": {"out_dtype": "float64"}}, "rounded"),
    "half": ({name: np.ones(shape, np.float16) for name, shape in SHAPES.items()}, "rounded"),
    "first": ({"last": {"output_layout": "nchw"}}, "channels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    changed, why = REFUSED[name]
    assert why in str(chain.refuses(layers(block(np.random.default_rng(0), 56, 1, **changed))))


def test_memory_does_not_grow_with_the_image() -> None:
    sizes = (56, 112, 224)
    used = [chain.Chain(layers(block(np.random.default_rng(0), n, 1))).workspace_bytes for n in sizes]
    assert max(used) < 3 << 20


@pytest.mark.parametrize("size", [32, 41])
def test_networks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stem with the first block, then every block; the second call runs bound."""
    monkeypatch.setattr(chain, "LARGE", 0)
    monkeypatch.setattr(chain, "ROWS", 3000)
    stages = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3))
    for same in (False, True):
        model = gm.inverted_residuals(stages, size=size, bn=True, same=same, classes=8)
        runner = load(model)
        for batch in (1, 2, 1, 1):
            assert_agrees(runner, model, {"x": normal(batch, 3, size, size, seed=batch)}, 1e-5)
        assert steps(runner, normal(1, 3, size, size))["InvertedResidual"] == 3


def test_the_layer_takes_views_and_writes_into_out() -> None:
    rng = np.random.default_rng(2)
    filters = [rng.standard_normal(s).astype(np.float32) for s in ((48, 8, 1, 1), (48, 1, 3, 3), (8, 48, 1, 1))]
    layer = gpu_conv.InvertedResidual(*filters, input_layout="nhwc", residual=True)
    x = rng.standard_normal((2, 60, 120, 8)).astype(np.float32)[:, ::-1, ::2]
    assert layer.in_one_launch(x)
    wanted = x
    for i, w in enumerate(filters):
        options = {"padding": 1, "groups": 48} if i == 1 else {"residual": x} if i == 2 else {}
        activation = None if i == 2 else "relu6"
        wanted = gpu_conv.conv2d(wanted, w, activation=activation, input_layout="nhwc", **options)
    out = np.full_like(wanted, np.nan)
    assert layer(x, out=out) is out
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer(x), out)
    with pytest.raises(ValueError, match="share memory"):
        layer(x, out=x)
