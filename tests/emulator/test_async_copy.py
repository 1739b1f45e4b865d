"""cp.async: sizes, zero filling, groups per thread, and reads before the copy has landed."""

import numpy as np
import pytest

from .ptx import run

HEAD = """.shared .align 16 .b8 tile[4096]; .reg .b64 %a, %o, %w, %n; .reg .b32 %s, %v, %i, %k; .reg .pred %q;
    mov.u32 %s, tile; mul.lo.u32 %i, %tid, {size}; add.u32 %s, %s, %i; cvt.u64.u32 %w, %i;
    add.s64 %a, %p0, %w; add.s64 %o, %p1, %w;"""
OUT = """mul.lo.u32 %i, %tid, {size};
    {{ .reg .b16 %b; .reg .u32 %c; .reg .b64 %x; mov.u32 %c, 0;
    LOOP: add.u32 %k, %s, %c; ld.shared.u8 %b, [%k]; cvt.u64.u32 %x, %c; add.s64 %x, %x, %o; st.global.u8 [%x], %b;
    add.u32 %c, %c, 1; setp.lt.u32 %q, %c, {size}; @%q bra LOOP; }}"""


def transfer(copy, size, data, threads=32, wait="cp.async.wait_all;", **options):
    out = np.full(threads * size, 0xEE, np.uint8)
    body = HEAD.format(size=size) + copy + wait + OUT.format(size=size)
    return out, run(body, [data, out], threads=threads, **options)


def bytes_for(size, threads=32):
    return np.random.default_rng(size).integers(0, 256, threads * size).astype(np.uint8)


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize(("cache", "size"), [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)])
def test_whole_copies(cache, size, seed):
    data = bytes_for(size)
    out, report = transfer(f"cp.async.{cache}.shared.global [%s], [%a], {size};", size, data, seed=seed)
    assert report.ok
    np.testing.assert_array_equal(out, data)
    hints = f"cp.async.{cache}.shared::cta.global.L2::128B [%s], [%a], {size};"
    np.testing.assert_array_equal(transfer(hints, size, data)[0], data)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_source_size_reads_less_and_fills_with_zeros(size):
    data = bytes_for(size)
    text = f"rem.u32 %i, %tid, {size + 1}; cp.async.ca.shared.global [%s], [%a], {size}, %i;"
    out, report = transfer(text, size, data)
    expected = data.reshape(32, size).copy()
    for lane in range(32):
        expected[lane, lane % (size + 1) :] = 0
    assert report.ok
    np.testing.assert_array_equal(out, expected.ravel())


def test_zero_filled_lanes_read_nothing():
    data = bytes_for(16)[: 20 * 16]
    text = "setp.lt.u32 %q, %tid, 20; selp.u32 %i, 16, 0, %q; cp.async.cg.shared.global [%s], [%a], 16, %i;"
    out, report = transfer(text, 16, data)
    assert report.ok
    np.testing.assert_array_equal(out, np.concatenate([data, np.zeros(12 * 16, np.uint8)]))
    out, report = transfer("setp.ge.u32 %q, %tid, 20; cp.async.cg.shared.global [%s], [%a], 16, %q;", 16, data)
    assert report.ok
    np.testing.assert_array_equal(out[20 * 16 :], 0)
    assert not transfer("cp.async.cg.shared.global [%s], [%a], 16;", 16, data)[1].ok


def test_partial_copies_are_bounded_by_what_they_read():
    data = bytes_for(4)[:126]
    text = "setp.eq.u32 %q, %tid, 31; selp.u32 %i, {}, 4, %q; cp.async.ca.shared.global [%s], [%a], 4, %i;"
    assert transfer(text.format(2), 4, data)[1].ok
    assert transfer(text.format(3), 4, data)[1].findings[0].kind == "out of bounds"


def test_source_size_beyond_the_copy():
    assert (
        transfer("mov.u32 %i, 8; cp.async.ca.shared.global [%s], [%a], 4, %i;", 4, bytes_for(4))[1].findings[0].kind
        == "invalid copy"
    )


def test_guarded_copies():
    data = bytes_for(16)
    text = """st.shared.v4.b32 [%s], {%tid, %tid, %tid, %tid}; setp.lt.u32 %q, %tid, 7;
        @%q cp.async.cg.shared.global [%s], [%a], 16;"""
    out, report = transfer(text, 16, data)
    assert report.ok
    np.testing.assert_array_equal(out[:112], data[:112])
    np.testing.assert_array_equal(out[112:].view(np.uint32), np.repeat(np.arange(7, 32), 4))


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize(("wait", "ok"), [
    ("cp.async.wait_all;", True), ("cp.async.wait_group 0;", False), ("cp.async.commit_group;", False), ("", False),
    ("cp.async.commit_group; cp.async.wait_group 0;", True), ("cp.async.commit_group; cp.async.wait_group 1;", False),
    ("cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;", True),
])  # fmt: skip
def test_reads_before_the_wait_are_found_whenever_the_copy_lands(wait, ok, seed):
    data = bytes_for(4)
    out, report = transfer("cp.async.ca.shared.global [%s], [%a], 4;", 4, data, wait=wait, seed=seed)
    assert report.ok == ok
    assert {f.kind for f in report.findings} <= {"copy not waited for"}
    if ok:
        np.testing.assert_array_equal(out, data)


def test_late_copies_show_stale_data():
    out, report = transfer("cp.async.ca.shared.global [%s], [%a], 4;", 4, bytes_for(4), wait="")
    assert (out == 0xFF).all()  # fresh shared memory, not the copy
    assert report.notes == ["cp.async copies were still in flight when their threads exited"]


def test_groups_are_counted_per_thread():
    """The lower half commits once more than the upper half; each waits for all but its own last group."""
    data = bytes_for(4)
    text = """cp.async.ca.shared.global [%s], [%a], 4; cp.async.commit_group; setp.lt.u32 %q, %tid, 16;
        @%q bra MORE; bra DONE; MORE: cp.async.commit_group; DONE:"""
    _, report = transfer(text, 4, data, wait="cp.async.wait_group 1;")
    assert {f.kind for f in report.findings} == {"copy not waited for"}
    assert report.findings[0].thread == (16, 0, 0)
    assert report.findings[0].lanes == 16 * 4


def test_other_threads_need_a_barrier_after_the_wait():
    text = (
        HEAD.format(size=4)
        + """cp.async.ca.shared.global [%s], [%a], 4; cp.async.wait_all; {}
        xor.b32 %i, %tid, 32; mul.lo.u32 %i, %i, 4; mov.u32 %s, tile; add.u32 %s, %s, %i;
        ld.shared.u32 %v, [%s]; st.global.u32 [%o], %v;"""
    )
    data = np.arange(64, dtype=np.uint32)
    out = np.zeros_like(data)
    assert run(text.format("bar.sync 0;"), [data, out], threads=64).ok
    assert out.tolist() == [i ^ 32 for i in range(64)]
    assert {f.kind for f in run(text.format(""), [data, out], threads=64).findings} == {"shared race"}


def test_overwriting_the_target_of_a_copy():
    text = HEAD.format(size=4) + "cp.async.ca.shared.global [%s], [%a], 4; st.shared.u32 [%s], %tid; cp.async.wait_all;"
    assert {f.kind for f in run(text, [np.zeros(32, np.uint32), None]).findings} == {"copy not waited for"}
