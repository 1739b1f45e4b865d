"""Shuffles, votes, reductions; lanes that wait for each other at warp-synchronous instructions."""

import numpy as np
import pytest

from .ptx import apply, run

LANES = np.arange(64, dtype=np.uint32)
X = np.random.default_rng(0).integers(0, 2**32, 64).astype(np.uint32)


def shuffle_reference(mode, lane, b, c, width):
    """The pseudo-code of the PTX manual for one lane of a warp."""
    segment, clamp = (c >> 8) & 31, c & 31
    highest = (lane & segment) | (clamp & ~segment & 31)
    lowest = lane & segment
    match mode:
        case "up":
            source = lane - b
            inside = source >= highest
        case "down":
            source = lane + b
            inside = source <= highest
        case "bfly":
            source = lane ^ b
            inside = source <= highest
        case _:
            source = lowest | (b & ~segment & 31)
            inside = source <= highest
    return (source if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 4])
def test_shuffle(mode, width):
    control = (32 - width) << 8 | (0 if mode == "up" else 31)
    rng = np.random.default_rng(width)
    for lane in (np.full(64, 1), np.full(64, 5), rng.integers(0, 32, 64)):
        lane = lane.astype(np.uint32)
        expected = [shuffle_reference(mode, i % 32, int(b), control, width) for i, b in enumerate(lane)]
        values = [X[i // 32 * 32 + source] for i, (source, _) in enumerate(expected)]
        text = f"shfl.sync.{mode}.b32 {{d}}, {{a}}, {{b}}, {control}, -1"
        np.testing.assert_array_equal(apply(text, [X, lane], ["b32", "b32"], "b32"), values)
        text = f"{{{{.reg .b32 t; shfl.sync.{mode}.b32 t|{{d}}, {{a}}, {{b}}, {control}, -1;}}}}"
        np.testing.assert_array_equal(
            apply(text, [X, lane], ["b32", "b32"], "pred"), [inside for _, inside in expected]
        )


@pytest.mark.parametrize("case", range(4))
def test_votes(case):
    votes = [X % 2, X * 0, X * 0 + 1, (LANES < 32).astype(np.uint32)][case]
    rows = votes.reshape(2, 32).astype(bool)
    expected = {
        "all.pred": rows.all(1),
        "any.pred": rows.any(1),
        "uni.pred": rows.all(1) | ~rows.any(1),
        "ballot.b32": [sum(1 << i for i in range(32) if row[i]) for row in rows],
    }
    for name, result in expected.items():
        kind = "b32" if name.startswith("ballot") else "pred"
        got = apply(f"vote.sync.{name} {{d}}, {{a}}, -1", [votes], ["pred"], kind)
        np.testing.assert_array_equal(got, np.repeat(np.asarray(result, np.uint32), 32))


def test_active_mask():
    assert set(apply("activemask.b32 {d}", [X], ["b32"], "b32").tolist()) == {0xFFFFFFFF}
    got = apply("{{mov.u32 {d}, 0; @{a} activemask.b32 {d};}}", [LANES % 2], ["pred"], "b32")
    assert got.tolist() == [0, 0xAAAAAAAA] * 32


@pytest.mark.parametrize("kind", ["u32", "s32", "b32"])
def test_redux(kind):
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum}
    if kind == "b32":
        functions = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    values = X.view(np.int32) if kind == "s32" else X
    for name, function in functions.items():
        got = apply(f"redux.sync.{name}.{kind} {{d}}, {{a}}, -1", [values], [kind], kind)
        expected = function.reduce(values.reshape(2, 32), axis=1, dtype=values.dtype)
        np.testing.assert_array_equal(got, np.repeat(expected, 32))


def test_special_registers():
    lane = LANES % 32
    expected = {"laneid": lane, "warpid": LANES // 32, "nwarpid": LANES * 0 + 2, "ntid.x": LANES * 0 + 64}
    expected |= {
        "tid.y": LANES * 0,
        "nctaid.z": LANES * 0 + 1,
        "lanemask_lt": (1 << lane) - 1,
        "lanemask_eq": 1 << lane,
    }
    expected |= {"lanemask_le": (2 << lane.astype(np.uint64)) - 1}
    expected |= {
        "lanemask_gt": 2**32 - (2 << lane.astype(np.uint64)),
        "lanemask_ge": 2**32 - (1 << lane.astype(np.uint64)),
    }
    expected |= {"dynamic_smem_size": LANES * 0, "total_smem_size": LANES * 0}
    for name, values in expected.items():
        np.testing.assert_array_equal(apply(f"mov.u32 {{d}}, %{name}", [X], ["b32"], "b32"), values)


def test_match_and_elect():
    values = X % 5
    expected = [sum(1 << j for j in range(32) if values[i // 32 * 32 + j] == values[i]) for i in range(64)]
    assert apply("match.any.sync.b32 {d}, {a}, -1", [values], ["b32"], "b32").tolist() == expected
    same = np.where(LANES < 32, 7, values).astype(np.uint32)
    assert apply("match.all.sync.b32 {d}, {a}, -1", [same], ["b32"], "b32").tolist() == [0xFFFFFFFF] * 32 + [0] * 32
    assert apply("{{.reg .b32 t; elect.sync t|{d}, -1;}}", [X], ["b32"], "pred").tolist() == ([1] + [0] * 31) * 2


# One side of a branch lies behind the shuffle that both sides meet at, as NVVM 23 lays it out.
OUT_OF_LINE = """.reg .pred %q; .reg .b32 %v, %r; .reg .b64 %o, %w;
    mov.u32 %v, %tid; setp.lt.u32 %q, %tid, 16; @%q bra AWAY;
MEET:
    shfl.sync.bfly.b32 %r, %v, 31, 31, -1;
    mul.wide.u32 %w, %tid, 4; add.s64 %o, %p0, %w; st.global.u32 [%o], %r;
    ret;
AWAY:
    add.u32 %v, %v, 100; bra MEET;"""


@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4])
def test_lanes_wait_for_their_whole_mask(seed):
    out = np.zeros(32, np.uint32)
    run(OUT_OF_LINE, [out], seed=seed, strict=True)
    assert out.tolist() == [31 - i for i in range(16)] + [31 - i + 100 for i in range(16, 32)]


def test_partial_masks_run_independently():
    out = np.zeros(32, np.uint32)
    body = """.reg .pred %q; .reg .b32 %v, %m; .reg .b64 %o, %w;
        setp.lt.u32 %q, %tid, 8; selp.b32 %m, 0xFF, 0xFFFFFF00, %q; mul.lo.u32 %v, %tid, 3;
        redux.sync.add.u32 %v, %v, %m;
        mul.wide.u32 %w, %tid, 4; add.s64 %o, %p0, %w; st.global.u32 [%o], %v;"""
    run(body, [out], strict=True)
    assert out.tolist() == [3 * sum(range(8))] * 8 + [3 * sum(range(8, 32))] * 24


def test_guarded_shuffle_runs_for_the_lanes_of_its_mask():
    out = np.zeros(32, np.uint32)
    body = """.reg .pred %q; .reg .b32 %v; .reg .b64 %o, %w; mov.u32 %v, %tid; setp.lt.u32 %q, %tid, 4;
        @%q shfl.sync.bfly.b32 %v, %v, 1, 31, 15;
        mul.wide.u32 %w, %tid, 4; add.s64 %o, %p0, %w; st.global.u32 [%o], %v;"""
    run(body, [out], strict=True)
    assert out.tolist() == [1, 0, 3, 2, *range(4, 32)]


def test_exited_lanes_are_not_waited_for():
    out = np.zeros(1, np.uint32)
    body = """.reg .pred %q; .reg .b32 %v; setp.lt.u32 %q, %tid, 4; @%q ret; redux.sync.add.u32 %v, %tid, -1;
        setp.eq.u32 %q, %tid, 9; @%q st.global.u32 [%p0], %v;"""
    run(body, [out], strict=True)
    assert out[0] == sum(range(4, 32))


def test_a_mask_that_never_arrives():
    body = """.reg .pred %q; .reg .b32 %v; setp.lt.u32 %q, %tid, 4; @%q bra SKIP;
        redux.sync.add.u32 %v, %tid, -1; SKIP: bar.sync 0;"""
    report = run(body, [])
    assert "incomplete warp" in [f.kind for f in report.findings]
    finding = next(f for f in report.findings if f.kind == "incomplete warp")
    assert finding.lanes == 28
    assert "redux" in finding.instruction


def test_a_lane_that_its_mask_does_not_name():
    report = run(".reg .b32 %v; redux.sync.add.u32 %v, %tid, 15;", [])
    assert report.findings[0].kind == "incomplete warp"
    assert report.findings[0].lanes == 28


def test_reading_the_register_of_an_absent_lane():
    body = ".reg .pred %q; .reg .b32 %v; setp.ge.u32 %q, %tid, 4; @%q ret; shfl.sync.idx.b32 %v, %tid, 9, 31, -1;"
    report = run(body, [])
    assert [(f.kind, f.lanes) for f in report.findings] == [("undefined lane", 4)]


LOAD_MATRIX = ".shared .align 16 .b8 t[128]; .reg .b32 %v; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%v}, [t];"


def test_tensor_core_needs_all_lanes():
    leave = ".reg .pred %q; setp.ge.u32 %q, %tid, 4; @%q ret; "
    assert "incomplete warp" in [f.kind for f in run(leave + LOAD_MATRIX, []).findings]
    assert "incomplete warp" in [f.kind for f in run(LOAD_MATRIX, [], threads=40).findings]
    assert "incomplete warp" not in [f.kind for f in run(LOAD_MATRIX, [], threads=64).findings]
