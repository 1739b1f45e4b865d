"""Counters against numbers worked out by hand."""

import numpy as np
import pytest

from .cuda import DIALECTS, launch
from .ptx import run

ACCESS = """.reg .b32 %i; .reg .b64 %a, %w; .reg .b32 %v, %u, %x, %y; {index}
    mul.wide.u32 %w, %i, {size}; add.s64 %a, %p0, %w; ld.global.{vector} [%a];"""

# index of lane t (32 lanes), bytes per lane, sectors of one request
SECTORS = [
    ("mov.u32 %i, %tid;", 4, 4),
    ("shl.b32 %i, %tid, 1;", 4, 8),
    ("shl.b32 %i, %tid, 2;", 4, 16),
    ("shl.b32 %i, %tid, 3;", 4, 32),
    ("mul.lo.u32 %i, %tid, 33;", 4, 32),
    ("mov.u32 %i, 5;", 4, 1),
    ("add.u32 %i, %tid, 1;", 4, 5),
    ("sub.u32 %i, 31, %tid;", 4, 4),
    ("xor.b32 %i, %tid, 21;", 4, 4),
    ("shr.u32 %i, %tid, 2;", 4, 1),
    ("mov.u32 %i, %tid;", 16, 16),
    ("mov.u32 %i, %tid;", 8, 8),
    ("mov.u32 %i, %tid;", 2, 2),
    ("mov.u32 %i, %tid;", 1, 1),
    ("rem.u32 %i, %tid, 3; mul.lo.u32 %i, %i, 64;", 4, 3),
]
FORMS = {1: "b8 %v,", 2: "b16 %v,", 4: "b32 %v,", 8: "v2.b32 {%v, %u},", 16: "v4.b32 {%v, %u, %x, %y},"}


def access(index, size, **options):
    text = ACCESS.format(index=index, size=size, vector=FORMS[size])
    return run(text, [np.zeros(1 << 14, np.uint8)], strict=True, **options).counters


@pytest.mark.parametrize(("index", "size", "expected"), SECTORS)
def test_sectors_per_request(index, size, expected):
    counters = access(index, size)
    assert counters.total("sectors", "ld.global") == expected
    assert counters.total("requests", "ld.global") == 1
    assert counters.total("lanes", "ld.global") == 32
    assert counters.total("bytes", "ld.global") == 32 * size
    assert counters.load_sectors_per_request == expected


def test_sectors_of_partial_and_of_several_warps():
    guard = ".reg .pred %q; setp.ge.u32 %q, %tid, 9; @%q ret; "
    assert access(guard + "mov.u32 %i, %tid;", 4).total("sectors", "ld.global") == 2
    assert access(guard + "sub.u32 %i, 64, %tid;", 4).total("sectors", "ld.global") == 2  # words 56..64
    counters = access("mov.u32 %i, %tid;", 4, threads=70)
    assert counters.total("sectors", "ld.global") == 4 + 4 + 1
    assert counters.total("requests", "ld.global") == 3
    counters = access("and.b32 %i, %tid, 31;", 4, threads=64, grid=3)
    assert counters.total("sectors", "ld.global") == 6 * 4
    assert counters.bytes_read == 128  # distinct, over all warps and blocks
    assert counters.traffic["p0"].read == 128


# word index of lane t, bytes per lane, wavefronts of one warp
BANKS = [
    ("mov.u32 %i, %tid;", 4, 1),
    ("mov.u32 %i, 7;", 4, 1),
    ("shl.b32 %i, %tid, 1;", 4, 2),
    ("shl.b32 %i, %tid, 2;", 4, 4),
    ("shl.b32 %i, %tid, 5;", 4, 32),
    ("mul.lo.u32 %i, %tid, 33;", 4, 1),
    ("shr.u32 %i, %tid, 1;", 4, 1),
    ("xor.b32 %i, %tid, 13;", 4, 1),
    ("mov.u32 %i, %tid;", 8, 2),
    ("mov.u32 %i, %tid;", 16, 4),
    ("shl.b32 %i, %tid, 1;", 16, 8),
    ("mul.lo.u32 %i, %tid, 17;", 8, 2),
    ("and.b32 %i, %tid, 3; shl.b32 %i, %i, 5;", 4, 4),
    ("mov.u32 %i, %tid;", 2, 1),
]


@pytest.mark.parametrize("mask", ["", ".reg .pred %q; setp.ge.u32 %q, %tid, 32; @%q ret;"])
@pytest.mark.parametrize(("index", "size", "expected"), BANKS)
def test_wavefronts(index, size, expected, mask):
    body = f""".shared .align 16 .b8 tile[8192]; .reg .b32 %i, %s, %v, %u, %x, %y; {mask} {index}
        mul.lo.u32 %i, %i, {size}; mov.u32 %s, tile; add.u32 %s, %s, %i; ld.shared.{FORMS[size]} [%s];"""
    counters = run(body, [], threads=64 if mask else 32).counters
    (counter,) = counters.accesses
    assert counter.wavefronts == expected
    assert counter.ideal_wavefronts == {1: 1, 2: 1, 4: 1, 8: 2, 16: 4}[size]
    assert (counters.bank_conflicts() == []) == (expected == counter.ideal_wavefronts)


def test_wavefronts_of_scattered_lanes():
    body = """.shared .align 16 .b8 tile[8192]; .reg .b32 %i, %s, %v; .reg .pred %q;
        and.b32 %i, %tid, 1; setp.eq.u32 %q, %i, 0; mul.lo.u32 %i, %tid, 64;
        mov.u32 %s, tile; add.u32 %s, %s, %i; @%q ld.shared.u32 %v, [%s];"""
    (counter,) = run(body, []).counters.accesses
    assert (counter.wavefronts, counter.ideal_wavefronts, counter.lanes) == (16, 1, 16)


def test_ldmatrix_wavefronts():
    body = """.shared .align 16 .b8 tile[1024]; .reg .b32 %s, %v<4>, %i; and.b32 %i, %tid, 7;
        mul.lo.u32 %i, %i, {pitch}; mov.u32 %s, tile; add.u32 %s, %s, %i;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%v0, %v1, %v2, %v3}}, [%s];"""
    for pitch, factor in ((16, 1), (80, 1), (32, 2), (64, 4), (128, 8)):
        (counter,) = run(body.format(pitch=pitch), []).counters.accesses
        assert counter.wavefronts == 4 * factor
        assert counter.ideal_wavefronts == 4


@pytest.mark.parametrize("arch", DIALECTS)
def test_totals_of_a_copy(arch):
    source = """__global__ void twice(const float* x, float* y, int n) {
        int i = blockIdx.x * 64 + threadIdx.x; if (i < n) y[i] = 2 * x[i]; }"""
    x, y = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    counters = launch(source, "twice", 16, 64, [x, y, 1000], arch=arch, names=["x", "y", "n"]).counters
    assert counters.traffic["x"].read == counters.traffic["y"].written == 4000
    assert counters.bytes_read == counters.bytes_written == 4000
    assert counters.load_sectors_per_request == counters.store_sectors_per_request == 125 / 32
    assert counters.classes["ld.global"] == counters.classes["st.global"] == 1000
    assert counters.thread_instructions == sum(counters.classes.values()) == sum(counters.opcodes.values())
    assert counters.blocks_covered == counters.block_count
    assert counters.uncovered == []
    assert counters.divergent_branches == 1
    assert 0.95 < counters.simt_efficiency < 1
    assert "4000 distinct bytes read" in str(counters)


@pytest.mark.parametrize("arch", DIALECTS)
def test_coverage_names_the_lines_that_never_ran(arch):
    source = """#line 1 "coverage.cu"
        __global__ void pick(float* y, int mode) {
            if (mode == 3)
                for (int i = 0; i < mode; ++i)
                    y[i * threadIdx.x] += 1;
            y[threadIdx.x] = 1;
        }"""
    counters = launch(source, "pick", 1, 32, [np.zeros(32, np.float32), 0], arch=arch).counters
    assert counters.blocks_covered < counters.block_count
    assert "coverage.cu:4" in counters.uncovered


def test_divergence():
    body = ".reg .pred %q; setp.lt.u32 %q, %tid, 16; @%q bra A; bra B; A: nanosleep.u32 1; B: nanosleep.u32 1;"
    counters = run(body, []).counters
    assert counters.divergent_branches == 1
    assert counters.simt_efficiency < 1
    assert run(body, [], threads=16).counters.divergent_branches == 0


def test_without_checks_nothing_is_counted_but_instructions():
    counters = access("mov.u32 %i, %tid;", 4, checks=False)
    assert counters.accesses == []
    assert counters.thread_instructions > 0
