"""Steps of the runner that are no convolutions and have a kernel: where it is taken, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpu_conv import execute
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.onnx import load

from .graph_models import Builder, normal


def pool(*spatial: int, channels: int = 3) -> Any:
    b = Builder()
    return b.model({"x": (np.float32, ["n", channels, *spatial])}, b.node("GlobalAveragePool", "x"))


def kernels(model: Any, x: Any) -> list[str]:
    """What would run on a GPU beside the array library."""
    recorder = execute.Recorder(KNOWN_TARGETS["sm_90a"])
    with execute.instead(recorder):
        load(model)(x)
    return [launch.kernel for launch in recorder.launches]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("spatial", [(9,), (5, 7), (3, 4, 5)])
def test_against_numpy(spatial: tuple[int, ...], dtype: str) -> None:
    """Every rank; the second call writes to the plan's buffers; float16 inputs as well as float32 ones."""
    model = pool(*spatial)
    runner, on_cpu = load(model, device="emulator", dtype=dtype), load(model, dtype=dtype)
    for seed in range(2):
        x = normal(2, 3, *spatial, seed=seed)
        for given in (x, x.astype(np.float16)) if dtype == "float16" else (x,):
            (found,), (wanted,) = runner(given).values(), on_cpu(given).values()
            assert found.shape == (2, 3, *(1 for _ in spatial))
            np.testing.assert_allclose(found, wanted, rtol=2e-3 if dtype == "float16" else 0, atol=2e-6)
    assert kernels(model, x) == ["channels_last", "global_average"]


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (normal(2, 5, 4, 4), ["global_average"]),  # more planes than the kernel takes
        (normal(2, 3, 4, 8)[..., ::2], ["global_average"]),  # not dense
        (normal(0, 3, 4, 4), []),
    ],
    ids=["planes", "strided", "empty"],
)
def test_elsewhere_the_array_library(x: Any, wanted: list[str]) -> None:
    model = pool("h", "w", channels=x.shape[1])
    with np.errstate(invalid="ignore"):
        (found,) = load(model, device="emulator")(x).values()
    assert found.shape == (x.shape[0], x.shape[1], 1, 1)
    np.testing.assert_allclose(found, x.mean((2, 3), keepdims=True), rtol=0, atol=1e-6)
    assert kernels(model, x) == wanted


def test_no_launch_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "launched", lambda *_: pytest.fail("nothing is launched for NumPy arrays"))
    x = normal(1, 3, 4, 4)
    for device in (None, "cpu"):
        (found,) = load(pool(4, 4), device=device)(x).values()
        np.testing.assert_allclose(found, x.mean((2, 3), keepdims=True), rtol=0, atol=1e-6)
