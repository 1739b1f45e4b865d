"""mbarrier: phases, counts, states; the order that they give; threads that wait in vain."""

import numpy as np
import pytest

from .ptx import run

HEAD = """.shared .align 8 .b64 bar[4]; .shared .align 16 .b8 tile[4096]; .reg .b32 %b, %s, %i, %v, %n;
    .reg .b64 %x, %w, %st; .reg .pred %q, %t0, %r; mov.u32 %b, bar; mov.u32 %s, tile; setp.eq.u32 %t0, %tid, 0;
    shl.b32 %i, %tid, 2; cvt.u64.u32 %w, %i; mov.u32 %v, 0; """
INIT = "@%t0 mbarrier.init.shared::cta.b64 [%b], {}; bar.sync 0;"
OUT = "add.s64 %x, %p0, %w; st.global.b32 [%x], %v;"
WAIT = "{{ AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], {}; @%q bra DONE; bra AGAIN; DONE: }}"
TEST = "mbarrier.test_wait{}.shared::cta.b64 %q, [%b], {}; @%q add.u32 %v, %v, {};"


def execute(body, threads=64, **options):
    out = np.full(threads, 0xFFFFFFFF, np.uint32)
    report = run(HEAD + body, [out], threads=threads, **options)
    return out, report


def kinds(body, threads=64, **options):
    return [f.kind for f in execute(body, threads, **options)[1].findings]


@pytest.mark.parametrize("arrive", [
    "mbarrier.arrive.shared::cta.b64 _, [%b];",
    "mbarrier.arrive.release.cta.shared.b64 %st, [%b];",
    "mbarrier.arrive.shared::cta.b64 %st, [%b], 1;",
    "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%b], 0;",
    "cvta.shared.u64 %x, %x; mbarrier.arrive.b64 _, [%x];",
    "mbarrier.arrive.shared::cluster.b64 _, [%b];",
])  # fmt: skip
def test_a_phase_completes_with_its_last_arrival(arrive):
    """The parity of the current phase is not over, the other one is: also before the first."""
    body = (
        INIT.format(64)
        + "mov.u64 %x, bar;"
        + TEST.format(".parity", 1, 1)
        + TEST.format(".parity", 0, 2)
        + "bar.sync 0;"
    )
    body += arrive + "bar.sync 0;" + TEST.format(".parity", 0, 4) + TEST.format(".parity", 1, 8) + OUT
    out, report = execute(body)
    assert report.ok, report
    assert (out == 1 + 4).all()


def test_counts_of_arrivals_and_bytes():
    one = "setp.eq.u32 %q, %tid, 5; @%q mbarrier.{} bar.sync 0; setp.ne.u32 %q, 0, 1;"
    body = INIT.format(3) + one.format("expect_tx.shared::cta.b64 [%b], 16;") + TEST.format(".parity", 0, 1)
    body += one.format("arrive.shared::cta.b64 _, [%b], 2;") + TEST.format(".parity", 0, 2)
    body += one.format("arrive.shared::cta.b64 _, [%b];") + TEST.format(".parity", 0, 4) + OUT
    out, report = execute(body)
    assert report.ok
    assert not out.any()  # 16 bytes are missing
    assert execute(body.replace("16;", "0;", 1))[0].tolist() == [4] * 64


def test_states_name_their_phase():
    """A thread that arrives twice: its first state is over, its second is not before the other one arrives again."""
    body = INIT.format(64) + """mbarrier.arrive.shared::cta.b64 %st, [%b]; bar.sync 0;""" + TEST.format("", "%st", 1)
    body += """@%t0 mbarrier.arrive.shared::cta.b64 %st, [%b]; bar.sync 0;""" + TEST.format("", "%st", 2)
    body += """@!%t0 mbarrier.arrive.shared::cta.b64 {}, [%b]; bar.sync 0;""" + TEST.format("", "%st", 4) + OUT
    out, report = execute(body.replace("{}", "%st"))
    assert report.ok
    assert out.tolist() == [1 + 4] + [1 + 2 + 4] * 63
    (finding,) = execute(body.replace("{}", "_"))[1].findings  # an H100 says that phase 0 is not over: it asks for 2
    assert (finding.kind, finding.lanes) == ("invalid mbarrier", 63)
    assert "asks for phase 0 of the mbarrier at bar + 0, which is in phase 2" in finding.message


def test_more_arrivals_in_one_instruction_than_a_phase_has():
    out, report = execute(INIT.format(16) + "mbarrier.arrive.shared::cta.b64 %st, [%b]; cvt.u32.u64 %v, %st;" + OUT)
    assert report.ok
    assert sorted(out.tolist()) == sorted(list(range(4)) * 16)


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("wait", [
    "mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], {n};",
    "mbarrier.test_wait.parity.acquire.cta.shared.b64 %q, [%b], {n};",
    "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %q, [%b], {n}, 1000;",
])  # fmt: skip
def test_waiting_orders_memory(wait, seed):
    """Two warps hand a value over and back, several times."""
    turn = """setp.lt.u32 %r, %tid, 32; @%r bra PRODUCE; bra CONSUME;
        PRODUCE: AGAIN1: {wait1} @!%q bra AGAIN1; add.u32 %b, %s, %i; st.shared.b32 [%b], %n; mov.u32 %b, bar;
            mbarrier.arrive.shared::cta.b64 _, [%b]; bra NEXT;
        CONSUME: AGAIN0: {wait0} @!%q bra AGAIN0; mov.u32 %b, tile; add.u32 %b, %b, %i; ld.shared.b32 %x32, [%b+-128];
            add.u32 %v, %v, %x32; mov.u32 %b, bar; mbarrier.arrive.shared::cta.b64 _, [%b+8];
        NEXT:"""
    body = ".reg .b32 %x32; mov.u32 %n, 0; @%t0 mbarrier.init.shared::cta.b64 [%b], 32;"
    body += "@%t0 mbarrier.init.shared::cta.b64 [%b+8], 32; bar.sync 0;"
    body += "LOOP: .reg .b32 %f, %e; and.b32 %f, %n, 1; xor.b32 %e, %f, 1;"
    waits = wait.replace("{n}", "%f"), wait.replace("[%b]", "[%b+8]").replace("{n}", "%e")
    body += turn.replace("{wait0}", waits[0]).replace("{wait1}", waits[1])
    body += "add.u32 %n, %n, 1; setp.lt.u32 %r, %n, 5; @%r bra LOOP;" + OUT
    out, report = execute(body, seed=seed)
    assert report.ok, report
    assert out.tolist() == [0] * 32 + [0 + 1 + 2 + 3 + 4] * 32
    without_order = (
        wait.replace(".acquire.cta", "").replace(".acquire.cluster", "").replace("parity", "parity.relaxed.cta")
    )
    unordered = body.replace(wait.replace("{n}", "%f"), without_order.replace("{n}", "%f"))
    assert set(kinds(unordered, seed=seed)) == {"shared race"}
    for label in "01":
        assert kinds(body.replace(f"@!%q bra AGAIN{label};", ""), seed=seed or 1)


def test_order_reaches_others_through_barriers_only():
    """One thread waits; the others may read after a barrier with it, and not before."""
    body = (
        INIT.format(32)
        + """setp.lt.u32 %r, %tid, 32; add.u32 %n, %s, %i; @%r st.shared.b32 [%n], %tid;
        @%r mbarrier.arrive.shared::cta.b64 _, [%b]; setp.eq.u32 %q, %tid, 33; @!%q bra READ;"""
        + WAIT.format(0)
    )
    body += (
        "READ: {} xor.b32 %i, %i, 128; add.u32 %n, %s, %i; setp.ge.u32 %r, %tid, 32; @%r ld.shared.b32 %v, [%n];" + OUT
    )
    out, report = execute(body.replace("{}", "bar.sync 0;"))
    assert report.ok
    assert out[32:].tolist() == list(range(32))
    assert execute(body.replace("{}", "setp.ge.u32 %r, %tid, 32; @!%r bra SKIP; bar.warp.sync -1; SKIP:"))[1].ok
    report = execute(body.replace("{}", ""))[1]
    assert {f.kind for f in report.findings} == {"shared race"}
    assert report.findings[0].lanes == 31  # all but the one that has waited


def test_a_test_may_fail_at_first():
    """Nobody may rely on a single try_wait."""
    body = INIT.format(32) + "setp.lt.u32 %r, %tid, 32; @%r bra ARRIVE;"
    body += (
        TEST.format(".parity", 0, 1).replace("test", "try")
        + "bra END; ARRIVE: mbarrier.arrive.shared::cta.b64 _, [%b];"
    )
    out, report = execute(body + "END:" + OUT)
    assert report.ok
    assert not out.any()


def test_waiting_in_vain():
    report = execute(INIT.format(65) + "mbarrier.arrive.shared::cta.b64 _, [%b];" + WAIT.format(0))[1]
    (finding,) = report.findings
    assert finding.kind == "barrier deadlock"
    assert finding.lanes == 64
    assert "phase 0 of the mbarrier at bar + 0 never completes: 1 of 65 arrivals are missing" in finding.message
    report = execute(INIT.format(64) + "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], 8;" + WAIT.format(0))[1]
    assert "0 of 64 arrivals are missing, 512 bytes are missing" in report.findings[0].message
    mixed = INIT.format(32) + "@%t0 bra HERE; bar.sync 0; HERE:" + WAIT.format(0)
    assert set(kinds(mixed)) == {"barrier deadlock"}


def test_a_test_that_gives_up_is_no_deadlock():
    body = (
        INIT.format(65)
        + """mov.u32 %n, 0; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 0; @%q bra DONE;
        add.u32 %n, %n, 1; setp.lt.u32 %r, %n, 2; @%r bra AGAIN; mov.u32 %v, 7; DONE:"""
        + OUT
    )
    out, report = execute(body)
    assert report.ok
    assert (out == 7).all()


def test_misuse():
    arrive, ready = "@%t0 mbarrier.arrive.shared::cta.b64 _, [%b];", INIT.format(1)
    assert kinds(arrive) == ["invalid mbarrier"]
    assert kinds(ready + arrive.replace("[%b]", "[%b+8]")) == ["invalid mbarrier"]
    assert kinds(ready + arrive.replace("[%b]", "[%b+4]"))[0] == "misaligned"
    assert kinds(ready + arrive.replace("[%b]", "[%b+64]"))[0] == "out of bounds"
    assert kinds(INIT.format(0)) == kinds(INIT.format(1 << 20)) == ["invalid mbarrier"]
    assert kinds(ready + ready) == ["invalid mbarrier"]
    assert kinds(ready + arrive.replace("[%b]", "[%b], 2")) == ["invalid mbarrier"]
    assert kinds(ready + arrive.replace("arrive", "arrive.expect_tx").replace("[%b]", f"[%b], {1 << 20}")) == [
        "invalid mbarrier"
    ]
    assert kinds(ready + "ld.shared.b32 %n, [%b];") == ["invalid mbarrier"]
    assert kinds(ready + "@%t0 st.shared.b32 [%b], %n;") == ["invalid mbarrier"]
    gone = ready + "@%t0 mbarrier.inval.shared::cta.b64 [%b]; bar.sync 0;"
    assert kinds(gone + ready) == []
    assert kinds(gone + "@%t0 st.shared.b32 [%b], %n;") == []
    assert kinds(gone + "ld.shared.b32 %n, [%b];") == ["uninitialised read"]
    assert kinds(gone + arrive) == ["invalid mbarrier"]
    assert kinds(ready.replace("bar.sync 0;", "") + "mbarrier.expect_tx.shared::cta.b64 [%b], 0;") == ["shared race"]
    assert kinds(INIT.format(1).replace("@%t0 ", "")) == ["shared race"]


def test_registers_of_a_warpgroup_and_leaders():
    body = (
        """setmaxnreg.dec.sync.aligned.u32 40; setmaxnreg.inc.sync.aligned.u32 232;
        elect.sync %n|%q, -1; @%q add.u32 %v, %n, 1;"""
        + OUT
    )
    out, report = execute(body, threads=128)
    assert report.ok
    assert np.flatnonzero(out).tolist() == [0, 32, 64, 96]
    assert kinds(body, threads=96) == ["incomplete warpgroup"]
