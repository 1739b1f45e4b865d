"""Workspace handed from block to block: what orders it and what does not."""

import numpy as np
import pytest

from .cuda import DIALECTS, launch

HEAD = """
template <int V> __global__ void sum(const float* x, float* y, float* part, int* ticket) {
    __shared__ int last;
    const int t = threadIdx.x, n = gridDim.x;
    part[blockIdx.x * 64 + t] = x[blockIdx.x * 64 + t];
    %s
    float total = 0;
    for (int b = 0; b < n; ++b) total += part[b * 64 + t];
    y[t] = total; }"""

RIGHT = {
    "fence in every thread": """__threadfence(); __syncthreads();
        if (t == 0) last = atomicAdd(ticket, 1) == n - 1; __syncthreads(); if (!last) return; __threadfence();""",
    "fence in one thread after a barrier": """__syncthreads();
        if (t == 0) { __threadfence(); last = atomicAdd(ticket, 1) == n - 1; __threadfence(); }
        __syncthreads(); if (!last) return;""",
    "release and acquire in the atomic": """__syncthreads();
        int old = 0;
        if (t == 0) { asm("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(old) : "l"(ticket) : "memory");
            last = old == n - 1; } __syncthreads(); if (!last) return;""",
    "a ticket per warp": """__threadfence(); __syncwarp();
        int old = 0; if (t % 32 == 0) old = atomicAdd(ticket, 1); old = __shfl_sync(-1, old, 0);
        __syncthreads(); if (t == 0) last = 0; __syncthreads();
        if (t % 32 == 0 && old == 2 * n - 1) last = 1; __syncthreads();
        if (!last) return; __threadfence();""",
    "compare and swap": """__threadfence(); __syncthreads();
        if (t == 0) { int seen = 0, old; while ((old = atomicCAS(ticket, seen, seen + 1)) != seen) seen = old;
            last = seen == n - 1; }
        __syncthreads(); if (!last) return; __threadfence();""",
}
WRONG = {
    "no atomic": "__threadfence(); __syncthreads(); if (blockIdx.x != n - 1) return;",
    "no fence at all": """__syncthreads();
        if (t == 0) last = atomicAdd(ticket, 1) == n - 1; __syncthreads(); if (!last) return;""",
    "fence before the barrier, by one thread": """if (t == 0) __threadfence(); __syncthreads();
        if (t == 0) last = atomicAdd(ticket, 1) == n - 1; __syncthreads(); if (!last) return; __threadfence();""",
    "block-scope fence": """__threadfence_block(); __syncthreads();
        if (t == 0) last = atomicAdd(ticket, 1) == n - 1; __syncthreads(); if (!last) return; __threadfence();""",
    "another ticket": """__threadfence(); __syncthreads();
        if (t == 0) { atomicAdd(ticket + 1 + blockIdx.x, 1); last = blockIdx.x == n - 1; }
        __syncthreads(); if (!last) return; __threadfence();""",
    "no fence by the reader": """__threadfence(); __syncthreads();
        if (t == 0) last = atomicAdd(ticket, 1) == n - 1; __syncthreads(); if (!last) return;""",
    "no barrier after the ticket": """__threadfence(); __syncthreads();
        if (t == 0) atomicAdd(ticket, 1); if (blockIdx.x != n - 1) return; __threadfence();""",
}


def reduce(text, arch, seed, blocks=6):
    x = np.random.default_rng(1).integers(-9, 9, (blocks, 64)).astype(np.float32)
    y = np.full(64, np.nan, np.float32)
    args = [x, y, np.full_like(x, np.nan), np.zeros(blocks + 1, np.int32)]
    report = launch(HEAD.replace("%s", text), "sum<0>", blocks, 64, args, arch=arch, seed=seed)
    return report, y, x.sum(0)


@pytest.mark.parametrize("arch", DIALECTS)
@pytest.mark.parametrize("name", RIGHT)
def test_ordered(name, arch):
    for seed in (None, 1, 2, 3):
        report, y, expected = reduce(RIGHT[name], arch, seed)
        assert report.ok, report
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("arch", DIALECTS)
@pytest.mark.parametrize("name", WRONG)
def test_not_ordered(name, arch):
    kinds = {f.kind for seed in (None, 1, 2) for f in reduce(WRONG[name], arch, seed)[0].findings}
    assert kinds == {"global race"}


def test_a_workspace_that_several_tiles_share_in_turn():
    """Two rounds of hand-over through the same tickets, as a persistent kernel does."""
    source = """__global__ void rounds(const float* x, float* y, float* part, int* ticket) {
        __shared__ int last;
        const int t = threadIdx.x;
        for (int tile = 0; tile < 3; ++tile) {
            part[(tile * gridDim.x + blockIdx.x) * 64 + t] = x[(tile * gridDim.x + blockIdx.x) * 64 + t];
            __threadfence();
            __syncthreads();
            if (t == 0) last = atomicAdd(ticket + tile, 1) == gridDim.x - 1;
            __syncthreads();
            if (last) {
                __threadfence();
                float sum = 0;
                for (int b = 0; b < gridDim.x; ++b) sum += part[(tile * gridDim.x + b) * 64 + t];
                y[tile * 64 + t] = sum;
            }
            __syncthreads();
        } }"""
    x = np.random.default_rng(1).integers(-9, 9, (3, 5, 64)).astype(np.float32)
    for seed in (None, 1, 2, 3, 4):
        y = np.full((3, 64), np.nan, np.float32)
        args = [x, y, np.zeros_like(x), np.zeros(3, np.int32)]
        report = launch(source, "rounds", 5, 64, args, seed=seed, outputs=[1])
        assert report.ok, report
        np.testing.assert_array_equal(y, x.sum(1))


def test_flags_with_release_and_acquire():
    """Block 0 publishes with st.release; the others poll with ld.acquire. Everything runs in one chunk."""
    source = """__global__ void flag(const float* x, float* y, int* ready) {
        const int t = threadIdx.x;
        if (blockIdx.x == 0) {
            y[t] = x[t];
            __syncthreads();
            if (t == 0) asm volatile("st.%s.global.u32 [%%0], 1;" ::"l"(ready) : "memory");
        } else {
            if (t == 0) {
                int seen = 0;
                while (!seen) asm volatile("ld.%s.global.u32 %%0, [%%1];" : "=r"(seen) : "l"(ready) : "memory");
            }
            __syncthreads();
            y[blockIdx.x * 64 + t] = 2 * y[t];
        } }"""
    x = np.arange(64, dtype=np.float32)
    cases = [("release.gpu", "acquire.gpu", True), ("relaxed.gpu", "acquire.gpu", False)]
    for store, load, ok in [*cases, ("release.gpu", "volatile", False)]:
        y = np.full((3, 64), np.nan, np.float32)
        report = launch(source % (store, load), "flag", 3, 64, [x, y, np.zeros(1, np.int32)], arch="sm_90", outputs=[1])
        assert report.ok == ok, report
        np.testing.assert_array_equal(y, [x, 2 * x, 2 * x])


CHANGE = """
template <int V> __global__ void change(const float* x, float* y, float* part, int* ticket) {
    __shared__ int last;
    const int t = threadIdx.x, b = blockIdx.x, n = gridDim.x;
    y[b * 64 + t] = part[t] + x[b * 64 + t];
    %s
    part[t] += 1; }"""


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("arch", DIALECTS)
def test_a_write_after_another_blocks_read(arch, seed):
    """Found although the readers come first; and no race if they have said that they are done."""
    x = np.ones((6, 64), np.float32)
    for text, kinds in (("if (b != n - 1) return;", {"global race"}), (RIGHT["fence in every thread"], set())):
        args = [x, np.full_like(x, np.nan), np.ones(64, np.float32), np.zeros(1, np.int32)]
        report = launch(CHANGE.replace("%s", text), "change<0>", 6, 64, args, arch=arch, seed=seed)
        assert {f.kind for f in report.findings} == kinds, report
    np.testing.assert_array_equal(args[1], 2)
    np.testing.assert_array_equal(args[2], 2)
