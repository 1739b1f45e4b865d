"""The device interface: launches of this package on NumPy arrays."""

from dataclasses import replace

import numpy as np
import pytest

import gpu_conv
from gpu_conv import emulator
from gpu_conv.emulator import EmulationError, Emulator
from gpu_conv.launch import Launch, TensorMap

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


def test_tickets_must_be_zero_again(launch):
    x, y = np.zeros(100, np.float32), np.full(100, np.nan, np.float32)
    report = Emulator(strict=False).run(replace(launch, ticket_bytes=4), {"x": x, "y": y})
    assert [f.kind for f in report.findings] == ["workspace"]


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


MAPPED = """
struct Params { int rows; };
struct alignas(64) Map { unsigned long long opaque[16]; };
template <int BYTES> __global__ void boxes(const float* x, const float* w, const float* bias, const float* residual,
        const float* x_zero_point, const float* w_zero_point, float* y, int* workspace, const Params p,
        const __grid_constant__ Map x_map, const __grid_constant__ Map y_map) {
    __shared__ __align__(128) float tile[BYTES / 4];
    __shared__ unsigned long long barrier;
    const unsigned to = __cvta_generic_to_shared(tile), at = __cvta_generic_to_shared(&barrier);
    if (threadIdx.x == 0) {
        asm volatile(
            "mbarrier.init.shared.b64 [%0], 1; fence.proxy.async; mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;"
            "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%2], [%3, {%4, %5}], [%0];"
            "{ W: .reg .pred q; mbarrier.try_wait.parity.shared.b64 q, [%0], 0; @!q bra W; }"
            "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%6, {%4, %5}], [%2];"
            "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"
            ::"r"(at), "n"(BYTES), "r"(to), "l"(&x_map), "r"(0), "r"((int)blockIdx.x * 4), "l"(&y_map) : "memory");
    }
}"""


def test_tensor_maps_follow_the_params(monkeypatch):
    """The maps of a launch are encoded for the operands that they name, views with an offset too."""
    monkeypatch.setattr("gpu_conv.cuda.compiler.load", lambda name: f'#line 1 "kernels/{name}"\n{MAPPED}')
    maps = [TensorMap(name, "float32", 4, (8, 9), (12,), (8, 4), (1, 1), 0) for name in ("x", "y")]
    launch = Launch("boxes.cu", "boxes", (128,), (3, 1, 1), (32, 1, 1), b"\t\0\0\0", tensor_maps=tuple(maps))
    x, y = (np.zeros((10, 12), np.float32) for _ in range(2))
    x += np.arange(120).reshape(10, 12)
    report = Emulator("sm_90a", strict=False).run(launch, {"x": x, "y": y})
    assert [f.kind for f in report.findings] == ["unwritten output"]  # a kernel must write all of y
    np.testing.assert_array_equal(y[:9, 4:], x[:9, 4:])
    assert not y[:, :4].any()
    with pytest.raises(EmulationError, match="out of bounds"):
        Emulator("sm_90a").run(launch, {"y": y})  # x is null
