"""Measure the ceilings of this GPU: copy and read bandwidth, L2, matrix and FMA rates, launch and graph-node cost.

    python benchmarks/calibrate.py --output benchmarks/results/h100-calibration.json [--only copy,peaks]

Every section runs in its own try block with its own alarm and the JSON is rewritten after each, so a failure costs one
section. Bandwidth counts bytes read plus bytes written. Rates count a multiply-add as two operations.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cupy
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_conv.cuda.timing import Timing, benchmark_stream, measure, operand_sets, rotate, summarize

SECTION_SECONDS = 40
MB = 1 << 20

KERNELS = r"""
struct alignas(16) Vec { unsigned x, y, z, w; };
__device__ Vec load_stream(const Vec* p) {
    Vec v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
__device__ Vec load_l2(const Vec* p) {  // .cg: past the L1, which would hold the slice of one SM
    Vec v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
extern "C" __global__ void empty() {}
extern "C" __global__ void nine_arguments(void*, void*, void*, void*, void*, void*, void*, void*, long long) {}

// One block: 256 threads x 4 vectors of 16 bytes.
extern "C" __global__ void copy(const Vec* x, Vec* y, long long n) {
    const long long base = blockIdx.x * 1024ll + threadIdx.x;
    Vec v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) if (base + i * 256 < n) v[i] = load_stream(x + base + i * 256);
#pragma unroll
    for (int i = 0; i < 4; i++) if (base + i * 256 < n) y[base + i * 256] = v[i];
}
extern "C" __global__ void read(const Vec* x, unsigned* sink, long long n) {
    const long long base = blockIdx.x * 1024ll + threadIdx.x;
    unsigned sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (base + i * 256 < n) { const Vec v = load_stream(x + base + i * 256); sum ^= v.x ^ v.y ^ v.z ^ v.w; }
    if (sum == 0x9e3779b9u) *sink = sum;
}
// Every block walks the whole set `rounds` times from its own starting point.
extern "C" __global__ void read_l2(const Vec* x, unsigned* sink, int n, int rounds) {
    unsigned sum = 0;
    const int step = gridDim.x * 1024;
    for (int r = 0; r < rounds; r++)
        for (int base = ((blockIdx.x + r * 7) % gridDim.x) * 1024 + threadIdx.x; base < n; base += step)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (base + i * 256 < n) { const Vec v = load_l2(x + base + i * 256); sum ^= v.x ^ v.y ^ v.z ^ v.w; }
    if (sum == 0x9e3779b9u) *sink = sum;
}
#define MMA(SHAPE, TYPES, A, B) \
    asm volatile("mma.sync.aligned." SHAPE ".row.col." TYPES " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
        : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3]) \
        : "r"(A[0]), "r"(A[1]), "r"(A[2]), "r"(A[3]), "r"(B[0]), "r"(B[1]))
#define MMA_PEAK(NAME, SHAPE, TYPES) \
extern "C" __global__ void __launch_bounds__(256) NAME(const unsigned* x, float* sink, int rounds) { \
    unsigned a[2][4], b[4][2]; \
    for (int i = 0; i < 8; i++) a[i / 4][i % 4] = x[threadIdx.x * 16 + i]; \
    for (int i = 0; i < 8; i++) b[i / 2][i % 2] = x[threadIdx.x * 16 + 8 + i]; \
    float c[8][4] = {}; \
    for (int r = 0; r < rounds; r++) { \
        _Pragma("unroll") for (int i = 0; i < 8; i++) MMA(SHAPE, TYPES, a[i / 4], b[i % 4]); \
    } \
    float sum = 0; \
    for (int i = 0; i < 32; i++) sum += c[i / 4][i % 4]; \
    if (sum == 1.2345f) *sink = sum; \
}
MMA_PEAK(mma_f16, "m16n8k16", "f32.f16.f16.f32")
MMA_PEAK(mma_bf16, "m16n8k16", "f32.bf16.bf16.f32")
MMA_PEAK(mma_tf32, "m16n8k8", "f32.tf32.tf32.f32")
extern "C" __global__ void __launch_bounds__(256) ffma(const float* x, float* sink, int rounds) {
    const float a = x[threadIdx.x], b = x[threadIdx.x + 256];
    float c[16];
    for (int i = 0; i < 16; i++) c[i] = x[threadIdx.x + i];
    for (int r = 0; r < rounds; r++) {
#pragma unroll
        for (int u = 0; u < 8; u++)
#pragma unroll
            for (int i = 0; i < 16; i++) c[i] = fmaf(c[i], a, b);
    }
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += c[i];
    if (sum == 1.2345f) *sink = sum;
}
"""


def kernel(name: str) -> cupy.RawKernel:
    """One of the probe kernels."""
    return cupy.RawModule(code=KERNELS, options=("-std=c++17",)).get_function(name)


def _entry(timing: Timing, *, nbytes: float = 0.0, flops: float = 0.0, **extra: Any) -> dict[str, Any]:
    """One result: the times and the rate they mean."""
    entry: dict[str, Any] = {**extra, **timing.as_dict()}
    if nbytes:
        entry["gb_per_s"] = round(nbytes / timing.us / 1e3, 1)
    if flops:
        entry["tflop_per_s"] = round(flops / timing.us / 1e6, 2)
    return entry


def _random_words(count: int) -> cupy.ndarray:
    """Random 32-bit words, never zeros: zeros run faster than data."""
    return cupy.random.random(count, dtype=cupy.float32).view(cupy.uint32)


def copy_bandwidth() -> dict[str, Any]:
    """Device-to-device copy by the driver and by a kernel, over sizes; buffers rotate past the L2."""
    run = kernel("copy")
    results: dict[str, Any] = {}
    for megabytes in (4, 8, 16, 32, 64, 128, 256, 1024):
        size = megabytes * MB
        sets = operand_sets(2 * size)
        xs = [_random_words(size // 4) for _ in range(sets)]
        ys = [cupy.empty_like(x) for x in xs]
        vectors = size // 16
        grid = (-(-vectors // 1024),)

        def driver(i: int, xs: list[Any] = xs, ys: list[Any] = ys, size: int = size) -> None:
            ys[i].data.copy_from_device_async(xs[i].data, size)

        def by_kernel(i: int, xs: list[Any] = xs, ys: list[Any] = ys, n: int = vectors, grid: Any = grid) -> None:
            run(grid, (256,), (xs[i], ys[i], np.int64(n)))

        for name, function in (("memcpy", driver), ("kernel", by_kernel)):
            ys[-1].fill(0)
            timing = measure(rotate(sets, function))
            results[f"{name}_{megabytes}mb"] = _entry(timing, nbytes=2 * size, moved_mb=2 * megabytes)
            if not bool((xs[-1] == ys[-1]).all()):
                raise AssertionError(f"the {name} copy of {megabytes} MiB is not equal to its source")
    results["copy_gb_per_s"] = max(v["gb_per_s"] for k, v in results.items() if k.endswith(("256mb", "1024mb")))
    return results


def read_bandwidth() -> dict[str, Any]:
    """Reads only, from DRAM: 1 GiB in 16-byte loads."""
    run, size = kernel("read"), 1024 * MB
    x, sink = _random_words(size // 4), cupy.zeros(1, cupy.uint32)
    timing = measure([lambda: run((-(-size // 16 // 1024),), (256,), (x, sink, np.int64(size // 16)))])
    return {"read_1024mb": _entry(timing, nbytes=size)}


def l2_bandwidth() -> dict[str, Any]:
    """Reads of a resident set past the L1, and a copy whose two buffers stay in the L2."""
    results: dict[str, Any] = {}
    run, rounds = kernel("read_l2"), 20
    sink = cupy.zeros(1, cupy.uint32)
    blocks = 8 * cupy.cuda.Device().attributes["MultiProcessorCount"]
    for megabytes in (5, 20, 30):
        x = _random_words(megabytes * MB // 4)
        arguments = (x, sink, np.int32(x.nbytes // 16), np.int32(rounds))
        timing = measure([partial(run, (blocks,), (256,), arguments)])
        results[f"read_{megabytes}mb"] = _entry(timing, nbytes=x.nbytes * rounds)
    copy = kernel("copy")
    for megabytes in (4, 10):
        x = _random_words(megabytes * MB // 4)
        grid = (-(-x.nbytes // 16 // 1024),)
        timing = measure([partial(copy, grid, (256,), (x, cupy.empty_like(x), np.int64(x.nbytes // 16)))])
        results[f"copy_{megabytes}mb"] = _entry(timing, nbytes=2 * x.nbytes, note="node cost included")
    return results


def matmul_peaks() -> dict[str, Any]:
    """Square matrix products of random data through PyTorch (cuBLAS)."""
    import torch

    results = {}
    for name, dtype, tf32, sizes in (
        ("fp16", torch.float16, False, (4096, 8192)),
        ("bf16", torch.bfloat16, False, (8192,)),
        ("tf32", torch.float32, True, (8192,)),
        ("fp32", torch.float32, False, (4096, 8192)),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        for size in sizes:
            a, b = (torch.randn((size, size), device="cuda", dtype=dtype) for _ in range(2))
            c = torch.empty_like(a)
            timing = measure([partial(torch.matmul, a, b, out=c)], budget_s=0.3)
            results[f"{name}_{size}"] = _entry(timing, flops=2 * size**3)
    torch.backends.cuda.matmul.allow_tf32 = False
    return results


def instruction_peaks() -> dict[str, Any]:
    """mma.sync and FFMA rates of kernels that do nothing else, at three occupancies; the summary is the best."""
    multiprocessors = cupy.cuda.Device().attributes["MultiProcessorCount"]
    results: dict[str, Any] = {}
    sink, rounds = cupy.zeros(1, cupy.float32), 4096
    halves = cupy.random.standard_normal(256 * 32, dtype=cupy.float32) * 0.01
    operands = {
        "mma_f16": halves.astype(cupy.float16).view(cupy.uint32),
        "mma_bf16": (halves.view(cupy.uint32) & 0xFFFF0000)[: 256 * 16] | 0x00003C12,
        "mma_tf32": halves.view(cupy.uint32) & 0xFFFFE000,
        "ffma": cupy.random.uniform(0.4, 0.6, 1024).astype(cupy.float32),
    }
    per_round = {"mma_f16": 8 * 4096, "mma_bf16": 8 * 4096, "mma_tf32": 8 * 2048, "ffma": 32 * 2 * 128}  # per warp
    for name, x in operands.items():
        run, best = kernel(name), 0.0
        for blocks_per_sm in (1, 2, 4):
            grid, arguments = (multiprocessors * blocks_per_sm,), (x, sink, np.int32(rounds))
            timing = measure([partial(run, grid, (256,), arguments)])
            flops = per_round[name] * rounds * 8 * grid[0]
            entry = _entry(timing, flops=flops, warps_per_sm=8 * blocks_per_sm)
            results[f"{name}_{8 * blocks_per_sm}warps"] = entry
            best = max(best, entry["tflop_per_s"])
        results[f"{name}_tflop_per_s"] = best
    return results


def launch_cost() -> dict[str, Any]:
    """Host time of one RawKernel call, without and with nine arguments, in microseconds."""
    buffers = tuple(cupy.empty(16, cupy.uint8) for _ in range(8))
    cases = {"empty": (kernel("empty"), ()), "nine_arguments": (kernel("nine_arguments"), (*buffers, np.int64(0)))}
    results = {}
    with benchmark_stream() as stream:
        for name, (run, arguments) in cases.items():
            samples = []
            for _ in range(30):
                stream.synchronize()
                start = time.perf_counter()
                for _ in range(200):  # fewer than the launch queue holds: the host never waits
                    run((1,), (32,), arguments)
                samples.append((time.perf_counter() - start) / 200 * 1e6)
            results[name] = summarize(samples[3:], 200, "host").as_dict()
    return results


def graph_nodes() -> dict[str, Any]:
    """GPU time per node of graphs of empty kernels, replayed back to back, and the host cost of a replay."""
    empty, results = kernel("empty"), {}
    multiprocessors = cupy.cuda.Device().attributes["MultiProcessorCount"]
    with benchmark_stream() as stream:
        for nodes in (1, 21, 54, 200):
            for label, grid, block in (("1x32", 1, 32), ("full", 2 * multiprocessors, 256)):
                stream.begin_capture()
                for _ in range(nodes):
                    empty((grid,), (block,), ())
                graph = stream.end_capture()
                graph.launch(stream)
                stream.synchronize()
                queued, alone, host = [], [], []
                events = [cupy.cuda.Event() for _ in range(61)]
                events[0].record()
                for event in events[1:]:
                    start = time.perf_counter()
                    graph.launch(stream)
                    host.append((time.perf_counter() - start) * 1e6)
                    event.record()
                stream.synchronize()
                queued = [1e3 * cupy.cuda.get_elapsed_time(a, b) for a, b in pairwise(events)]
                for _ in range(30):  # launch to completion on an idle GPU: the latency a single inference sees
                    start = time.perf_counter()
                    graph.launch(stream)
                    stream.synchronize()
                    alone.append((time.perf_counter() - start) * 1e6)
                replay = summarize(queued[10:], 1, "graph")
                results[f"{nodes}_nodes_{label}"] = {
                    "us_per_node": round(replay.us / nodes, 3),
                    "replay": replay.as_dict(),
                    "latency": summarize(alone[5:], 1, "host").as_dict(),
                    "host": summarize(host[10:], 1, "host").as_dict(),
                }
    return results


def _command(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"not available: {error}"


def gpu_state() -> str:
    """Clocks, temperature and power as ``nvidia-smi`` sees them now."""
    query = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,clocks_event_reasons.active"
    return _command("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")


def environment() -> dict[str, Any]:
    """What the numbers depend on: hardware, driver, library versions, commit."""
    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    record: dict[str, Any] = {
        "gpu": properties["name"].decode(),
        "compute_capability": device.compute_capability,
        "multiprocessors": device.attributes["MultiProcessorCount"],
        "l2_bytes": device.attributes["L2CacheSize"],
        "shared_per_block_optin": device.attributes["MaxSharedMemoryPerBlockOptin"],
        "memory_bytes": device.mem_info[1],
        "driver": _command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda_driver": cupy.cuda.runtime.driverGetVersion(),
        "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "nvrtc": list(cupy.cuda.nvrtc.getVersion()),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cupy": cupy.__version__,
        "commit": _command("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    try:
        import torch

        record["torch"] = torch.__version__
        record["cudnn"] = torch.backends.cudnn.version()
    except ImportError:
        record["torch"] = None
    return record


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "environment": environment,
    "copy": copy_bandwidth,
    "read": read_bandwidth,
    "l2": l2_bandwidth,
    "instructions": instruction_peaks,
    "graph": graph_nodes,
    "launch": launch_cost,
    "matmul": matmul_peaks,
}


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds (at the next Python instruction)."""

    def stop(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def main() -> int:
    """Run the chosen sections; exit code 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file, rewritten after each section")
    parser.add_argument("--only", default=",".join(SECTIONS), help="comma-separated sections")
    options = parser.parse_args()
    report: dict[str, Any] = {"schema": "gpu_conv-calibration-1", "gpu_state": {}, "errors": {}}
    for name in options.only.split(","):
        start = time.perf_counter()
        try:
            with alarm(SECTION_SECONDS):
                report[name] = SECTIONS[name]()
        except Exception as error:  # noqa: BLE001 - one broken section must not cost the others
            report["errors"][name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        report["gpu_state"][name] = gpu_state()
        cupy.get_default_memory_pool().free_all_blocks()
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{name}: {time.perf_counter() - start:.1f} s, {report['errors'].get(name, 'ok')}", flush=True)
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
