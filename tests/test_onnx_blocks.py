"""Blocks of convolutions that the runner computes in one launch: which are found and taken, and what comes out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from gpu_conv import execute
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.families import inverted_residual_model
from gpu_conv.graph.blocks import find
from gpu_conv.graph.errors import NodeError
from gpu_conv.onnx import Model, load

from . import graph_models as gm
from .graph_models import Builder, normal

ARCH = "sm_90a"


def launches(model: Model, *shape: int) -> Counter[str]:
    """What would run on a GPU, by kernel."""
    recorder = execute.Recorder(KNOWN_TARGETS[ARCH])
    with execute.instead(recorder):
        model(np.zeros(shape, np.float32))
    return Counter(launch.kernel for launch in recorder.launches)


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_residual_model, "slower", lambda chain, target: "not wanted")


def allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_residual_model, "slower", lambda chain, target: None)


def test_launches_of_mobilenet_v2(monkeypatch: pytest.MonkeyPatch) -> None:
    """52 convolutions, a mean, a product, and the move to channels last; up to 17 blocks are one launch each."""
    proto = gm.inverted_residuals(gm.MOBILENET_V2, size=224, bn=True)
    model = load(proto, dtype="float16", device="emulator")
    found = launches(model, 1, 3, 224, 224)
    assert found["inverted_residual"] >= 13
    assert found["channels_last"] == found["global_average"] == 1
    assert found.total() == 55 - 2 * found["inverted_residual"] + 1, "the first block has no expansion"
    assert launches(load(proto, device="emulator"), 1, 3, 224, 224)["inverted_residual"] == 0
    allow(monkeypatch)
    found = launches(load(proto, dtype="float16", device="emulator"), 1, 3, 224, 224)
    assert found["inverted_residual"] == 17
    assert found.total() == 22
    forbid(monkeypatch)
    assert launches(load(proto, dtype="float16", device="emulator"), 1, 3, 224, 224).total() == 55


def test_every_input_shape_decides_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        inverted_residual_model, "slower", lambda chain, target: None if chain.project.batch == 1 else "large"
    )
    model = load(gm.inverted_residuals(gm.MOBILENET_V2[:2], size=32), dtype="float16", device="emulator")
    counts = [launches(model, batch, 3, 32, 32)["inverted_residual"] for batch in (1, 2, 1)]
    assert counts == [3, 0, 3]


def test_smaller_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expanded tensors, six times as large as the others, need no memory."""
    proto = gm.inverted_residuals(gm.MOBILENET_V2[1:3], size=64)
    sizes = []
    for choose in (allow, forbid):
        choose(monkeypatch)
        model = load(proto, dtype="float16", device="emulator")
        launches(model, 1, 3, 64, 64)
        sizes.append(model.plans[0].buffer_bytes)
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize("same", [False, True])
def test_against_numpy(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without expansion, residual and stride; the second call runs bound, the third replans for a batch."""
    allow(monkeypatch)
    proto = gm.inverted_residuals(((1, 16, 1, 1, 3), (6, 24, 2, 2, 3)), size=16, bn=True, same=same, classes=8)
    model, plain = load(proto, dtype="float16", device="emulator"), load(proto, dtype="float16")
    x = normal(1, 3, 16, 16)
    for given in (x, x[:, :, ::-1].copy(), normal(2, 3, 16, 16)):
        (found,), (wanted,) = model(given).values(), plain(given).values()
        # Roundings to float16 are the same but for sums in another order: of 8 layers a few units in the last place.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=4e-3 * np.abs(wanted).max())
    rows = [row for row in model.profile(x, repeat=1) if row.op == "InvertedResidual"]
    assert [row.kernel for row in rows] == ["inverted_residual"] * 3
    assert rows[0].shape == (1, 8, 8, 16)
    assert rows[1].node == "Conv_8 to Conv_14"
    (found,) = model(x).values()
    np.testing.assert_allclose(found, next(iter(plain(x).values())), rtol=0, atol=4e-3 * np.abs(wanted).max())


def test_small_integers_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of small integers are exact in float16, whatever their order."""
    allow(monkeypatch)
    model = block(np.random.default_rng(0), size=9)
    x = np.random.default_rng(1).integers(-2, 3, (2, 8, 9, 9)).astype(np.float32)
    (wanted,) = gm.expected(model, {"x": x}).values()
    runner = load(model, dtype="float16", device="emulator")
    for _ in range(3):
        (found,) = runner(x).values()
        np.testing.assert_array_equal(found, wanted)


def block(
    rng: np.random.Generator,
    size: int,
    *,
    residual: str = "x",
    filter_: int = 3,
    pads: int = 0,
    outputs: tuple[str, ...] = (),
    read_twice: bool = False,
    multiplier: int = 1,
) -> Any:
    """Expand, depthwise, project and a sum; the options are what keeps it from being one block."""
    b = Builder()

    def conv(x: str, shape: tuple[int, ...], **attributes: Any) -> str:
        w = rng.integers(-1, 2, shape).astype(np.float32) * (rng.random(shape) < 0.5)
        return b.node(
            "Conv", x, b.constant(w.astype(np.float32)), b.constant(np.ones(shape[0], np.float32)), **attributes
        )

    expanded = b.node("Relu", conv("x", (16, 8, 1, 1), pads=[pads] * 4))
    around = [filter_ // 2 - pads] * 4
    inner = b.node("Relu", conv(expanded, (16 * multiplier, 1, filter_, filter_), group=16, pads=around))
    y = conv(inner, (8, 16 * multiplier, 1, 1))
    y = b.node("Add", y, {"x": "x", "other": b.node("Relu", "x")}.get(residual, y)) if residual else y
    if read_twice:
        y = b.node("Add", y, conv(expanded, (8, 16, 1, 1)))
    kept = [{"expanded": expanded, "inner": inner}[name] for name in outputs]
    return b.model({"x": (np.float32, ["n", "c", size, size])}, y, *kept)


@pytest.mark.parametrize(
    ("options", "members"),
    [
        ({}, [3, 2]),
        ({"residual": ""}, [3, 2]),
        ({"residual": "other"}, []),
        ({"residual": "itself"}, [3, 2]),
        ({"filter_": 5}, []),
        ({"pads": 1}, [3, 2]),
        ({"outputs": ("expanded",)}, [2]),
        ({"outputs": ("inner",)}, []),
        ({"read_twice": True}, [2]),
        ({"multiplier": 2}, []),
    ],
)
def test_candidates(options: dict[str, Any], members: list[int]) -> None:
    """One may begin within another: without expansion, where its sum is with something else than its input, none."""
    found = find(load(block(np.random.default_rng(0), size=8, **options)).graph)
    if options.get("residual", "x") == "x" and members:
        members = [n for n in members if n == 3]  # the sum is with the input of the expansion
    assert [len(b.members) for b in found.values()] == members


def test_what_no_kernel_takes_runs_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that the kernel refuses: channels that are no multiple of 8, and an empty batch."""
    allow(monkeypatch)
    model = gm.inverted_residuals(((1, 4, 1, 1, 3), (3, 4, 1, 1, 3)), size=16)
    assert launches(load(model, dtype="float16", device="emulator"), 1, 3, 16, 16)["inverted_residual"] == 0
    runner = load(block(np.random.default_rng(0), size=8), dtype="float16", device="emulator")
    (empty,) = runner(np.zeros((0, 8, 8, 8), np.float32)).values()
    assert empty.shape == (0, 8, 8, 8)


def test_errors_name_the_convolution() -> None:
    """A candidate whose input does not fit fails as the first of its convolutions would."""
    runner = load(block(np.random.default_rng(0), size=8), dtype="float16", device="emulator")
    with pytest.raises(NodeError, match=r"'Conv_0' .*needs c of x == groups \* i of w"):
        runner(np.zeros((1, 7, 8, 8), np.float32))
