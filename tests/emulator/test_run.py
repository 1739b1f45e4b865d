"""The device interface: launches of this package on NumPy arrays."""

import numpy as np
import pytest

import gpu_conv
from gpu_conv import emulator
from gpu_conv.emulator import Emulator
from gpu_conv.launch import Launch

from .cuda import DIALECTS

SOURCE = """
struct Params { int n; float scale; };
template <int STEP> __global__ void scaled(const float* x, const float* w, const float* bias, const float* residual,
        const float* x_zero_point, const float* w_zero_point, float* y, int* workspace, const Params p) {
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) * STEP;
    if (i >= p.n) return;
    y[i] = p.scale * x[i] + (bias ? bias[0] : 0.f);
    atomicAdd(workspace, 1);
}"""


@pytest.fixture
def launch(monkeypatch):
    monkeypatch.setattr("gpu_conv.cuda.compiler.load", lambda name: f'#line 1 "kernels/{name}"\n{SOURCE}')
    params = np.array([(100, 2.0)], [("n", "<i4"), ("scale", "<f4")]).tobytes()
    return Launch("scaled.cu", "scaled", (1,), (4, 1, 1), (32, 1, 1), params, workspace_bytes=4)


@pytest.mark.parametrize("arch", DIALECTS)
def test_operands_go_by_name(launch, arch):
    x, y = np.arange(100, dtype=np.float32), np.full(100, np.nan, np.float32)
    report = Emulator(arch).run(launch, {"x": x, "y": y})
    np.testing.assert_array_equal(y, 2 * x)
    assert report.kernel == "scaled<1>"
    assert report.ok
    assert report.counters.traffic["x"].read == report.counters.traffic["y"].written == 416
    Emulator(arch).run(launch, {"x": x, "bias": np.ones(1, np.float32), "y": y, "w": None})
    np.testing.assert_array_equal(y, 2 * x + 1)


def test_only_y_and_the_workspace_may_be_written(launch):
    x = np.zeros(100, np.float32)
    report = Emulator(strict=False).run(launch, {"x": x, "y": x[:96]})
    assert [f.kind for f in report.findings] == ["out of bounds"]
    assert str(report.findings[0].source[0]) == "scaled.cu:7"
    y = np.full(128, np.nan, np.float32)
    report = Emulator(strict=False).run(launch, {"x": x, "y": y})
    assert "28 of 128 elements of y were never written" in report.findings[0].message
    y = np.zeros(100, np.float32)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="y is read-only"):
        Emulator().run(launch, {"x": x, "y": y})


def test_unknown_operands(launch):
    with pytest.raises(ValueError, match=r"unknown operands.*'z'"):
        Emulator().run(launch, {"z": np.zeros(1)})


def test_the_module_function_keeps_its_report(launch):
    x, y = np.arange(100, dtype=np.float32), np.zeros(100, np.float32)
    report = emulator.run(launch, {"x": x, "y": y})
    assert emulator.last_report() is report


@pytest.mark.parametrize("groups", [1, 8])
def test_a_convolution(groups):
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 4, (2, 8, 9, 7)).astype(np.float32)
    w = rng.integers(-4, 4, (8, 8 // groups, 3, 3)).astype(np.float32)
    y = gpu_conv.conv2d(x, w, padding=1, groups=groups, device="emulator")
    np.testing.assert_array_equal(y, gpu_conv.conv2d(x, w, padding=1, groups=groups))
    assert emulator.last_report().ok
