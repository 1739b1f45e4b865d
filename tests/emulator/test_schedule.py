"""Divergence, loops, switches, barriers; deadlocks; and the random schedule."""

import numpy as np
import pytest

from gpu_conv.emulator import EmulationError

from .cuda import DIALECTS, launch
from .ptx import run

SEEDS = [None, 1, 2, 3]
STORE = "mul.wide.u32 %w, %tid, 4; add.s64 %o, %p0, %w; st.global.u32 [%o], %v;"


def collect(body, threads=64, grid=1, **options):
    """Run PTX that leaves a result in %v; returns the results of block 0 and the report."""
    out = np.zeros(threads, np.uint32)
    registers = ".reg .b32 %v, %i, %j; .reg .b64 %o, %w; .reg .pred %q, %r;"
    report = run(body + STORE, [out], threads=threads, grid=grid, registers=registers, **options)
    return out.tolist(), report


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threads", [64, 33, 7])
def test_loops_with_a_trip_count_per_lane(threads, seed):
    body = """mov.u32 %v, 0; mov.u32 %i, 0;
    LOOP: setp.ge.u32 %q, %i, %tid; @%q bra DONE; add.u32 %v, %v, %i; add.u32 %i, %i, 1; bra LOOP;
    DONE:"""
    got, report = collect(body, threads, seed=seed)
    assert report.ok
    assert got == [sum(range(t)) for t in range(threads)]


@pytest.mark.parametrize("seed", SEEDS)
def test_nested_branches_keep_the_registers_of_the_other_side(seed):
    body = """mov.u32 %v, 7; and.b32 %i, %tid, 3; setp.eq.u32 %q, %i, 0; @%q bra A; setp.eq.u32 %q, %i, 1; @%q bra B;
        add.u32 %v, %v, 100; mov.u32 %j, 1; bra JOIN;
    A:  setp.gt.u32 %r, %tid, 31; @%r bra A2; add.u32 %v, %v, 200; mov.u32 %j, 2; bra JOIN;
    A2: add.u32 %v, %v, 300; mov.u32 %j, 3; bra JOIN;
    B:  mov.u32 %j, %v; add.u32 %v, %v, 400;
    JOIN: mad.lo.u32 %v, %j, 1000, %v;"""
    got, report = collect(body, seed=seed)
    assert report.ok
    assert got == [[2207 if t < 32 else 3307, 7407, 1107, 1107][t % 4] for t in range(64)]


@pytest.mark.parametrize("seed", SEEDS)
def test_switch(seed):
    body = """and.b32 %i, %tid, 3; brx.idx %i, TABLE;
    TABLE: .branchtargets A, B, C, A;
    A: mov.u32 %v, 1; bra DONE;
    B: mov.u32 %v, 2; bra DONE;
    C: mov.u32 %v, 3;
    DONE:"""
    assert collect(body, seed=seed)[0] == [1, 2, 3, 1] * 16
    assert collect(body.replace("%tid, 3", "2, 3"), seed=seed)[0] == [3] * 64
    report = collect(body.replace("and.b32 %i, %tid, 3", "mov.u32 %i, 9"), seed=seed)[1]
    assert "branch target 9 of 4" in report.findings[0].message


@pytest.mark.parametrize("seed", SEEDS)
def test_early_exits(seed):
    body = "setp.gt.u32 %q, %tid, 40; @%q ret; setp.lt.u32 %q, %tid, 3; @%q exit; mov.u32 %v, 5; bar.sync 0;"
    got, report = collect(body, seed=seed)
    assert report.ok
    assert got == [0] * 3 + [5] * 38 + [0] * 23


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("operation", "kind", "expected"), [
    ("popc", "u32", [22, 22]), ("or", "pred", [1, 1]), ("and", "pred", [0, 0]),
])  # fmt: skip
def test_barrier_reductions(operation, kind, expected, seed):
    target = "%v" if kind == "u32" else "%q"
    body = f"""rem.u32 %i, %tid, 3; setp.eq.u32 %r, %i, 0; setp.lt.u32 %q, %tid, 0;
        bar.red.{operation}.{kind} {target}, 0, %r; {"selp.u32 %v, 1, 0, %q;" if kind == "pred" else ""}"""
    for grid in (1, 3):
        got, report = collect(body, grid=grid, seed=seed)
        assert {f.kind for f in report.findings} <= {"global race"}  # all blocks write the same results
        assert got == [expected[0]] * 64


def test_barrier_reduction_of_a_part_that_is_all_true():
    body = """setp.ge.u32 %q, %tid, 20; @%q ret; setp.lt.u32 %r, %tid, 20;
        bar.red.and.pred %q, 0, %r; selp.u32 %v, 1, 0, %q;"""
    assert collect(body)[0] == [1] * 20 + [0] * 44


def test_threads_at_different_barriers():
    body = "mov.u32 %v, 1; setp.lt.u32 %q, %tid, {}; @%q bra A; bar.sync 0; bra DONE; A: bar.sync 0; DONE:"
    assert collect(body.format(32))[1].ok  # whole warps: the hardware counts them at either place
    report = collect(body.format(16))[1]
    assert [f.kind for f in report.findings] == ["divergent barrier"]
    report = collect(body.format(32).replace("A: bar.sync 0", "A: bar.sync 1"))[1]
    assert {f.kind for f in report.findings} == {"barrier deadlock"}
    assert "wait at different barriers" in report.findings[0].message


def test_a_block_that_waits_for_threads_in_a_shuffle():
    body = "setp.lt.u32 %q, %tid, 16; @%q bra A; bar.sync 0; A: redux.sync.add.u32 %v, %tid, -1;"
    kinds = {f.kind for f in collect(body)[1].findings}
    assert kinds == {"barrier deadlock", "incomplete warp"}


def test_endless_loops_and_traps(monkeypatch):
    monkeypatch.setattr("gpu_conv.emulator.scheduler.MAX_STEPS", 1000)
    report = collect("LOOP: bra LOOP; mov.u32 %v, 1;")[1]
    assert [f.kind for f in report.findings] == ["endless loop"]
    report = collect("setp.eq.u32 %q, %tid, 9; mov.u32 %v, 1; @!%q bra OK; trap; OK:")[1]
    assert [(f.kind, f.thread) for f in report.findings] == [("trap", (9, 0, 0))]


def test_blocks_in_three_dimensions():
    source = """__global__ void where(unsigned* y) {
        const unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        const unsigned t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        y[b * blockDim.x * blockDim.y * blockDim.z + t] = b * 1000 + t; }"""
    for arch in DIALECTS:
        for seed in (None, 1):
            y = np.zeros(24 * 70, np.uint32)
            assert launch(source, "where", (3, 4, 2), (5, 7, 2), [y], arch=arch, seed=seed, outputs=[0]).ok
            assert y.tolist() == [1000 * b + t for b in range(24) for t in range(70)]


def test_many_blocks_share_a_chunk_without_false_races():
    """Blocks with different trip counts, so that their barriers come apart."""
    source = """__global__ void bands(const float* x, float* y) {
        __shared__ float tile[64];
        const int t = threadIdx.x;
        float sum = 0;
        for (int round = 0; round <= blockIdx.x % 7; ++round) {
            tile[t] = x[round * 64 + t];
            __syncthreads();
            for (int i = 0; i < 64; i += 9) sum += tile[(t + i) % 64] + tile[0];
            __syncthreads();
        }
        y[blockIdx.x * 64 + t] = sum; }"""
    x = np.random.default_rng(0).integers(-9, 9, (7, 64)).astype(np.float32)
    rounds = sum(np.roll(x, -i, axis=1) for i in range(0, 64, 9)) + 8 * x[:, :1]
    expected = np.cumsum(rounds, axis=0)[np.arange(60) % 7]
    for arch in DIALECTS:
        for seed in SEEDS:
            y = np.full((60, 64), np.nan, np.float32)
            report = launch(source, "bands", 60, 64, [x, y], arch=arch, seed=seed, outputs=[1])
            assert report.ok, report
            np.testing.assert_array_equal(y, expected)


def test_several_readers_of_one_warp_need_only_a_barrier_of_the_warp():
    source = """template <bool OTHERS> __global__ void readers(const float* x, float* y) {
        __shared__ float tile[2][32];
        const int lane = threadIdx.x % 32, w = threadIdx.x / 32;
        float sum = 0;
        for (int round = 0; round < 4; ++round) {
            tile[w][lane] = x[lane + round];
            __syncwarp();
            for (int i = 0; i < 32; ++i) sum += tile[OTHERS ? 0 : w][i];
            __syncwarp();
        }
        y[threadIdx.x] = sum; }"""
    x = np.arange(40, dtype=np.float32)
    for seed in SEEDS:
        y = np.zeros(64, np.float32)
        assert launch(source, "readers<false>", 1, 64, [x, y], seed=seed).ok
        assert {f.kind for f in launch(source, "readers<true>", 1, 64, [x, y], seed=seed).findings} == {"shared race"}


def test_the_seed_is_in_the_report_and_repeats_the_run():
    source = """__global__ void tickets(int* counter, int* y) {
        y[blockIdx.x * 32 + threadIdx.x] = atomicAdd(counter, 1); }"""
    seen = []
    for seed in (4, 4, 5):
        counter, y = np.zeros(1, np.int32), np.zeros(320, np.int32)
        report = launch(source, "tickets", 10, 32, [counter, y], seed=seed)
        assert report.ok
        assert f"seed {seed}" in str(report)
        seen.append(y.tolist())
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
    assert sorted(seen[0]) == list(range(320))


def test_findings_of_a_random_schedule_name_the_seed():
    with pytest.raises(EmulationError, match="seed 3"):
        run(".reg .b32 %v; ld.global.u32 %v, [%p0+64];", [np.zeros(4, np.uint32)], seed=3, strict=True)
