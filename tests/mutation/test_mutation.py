"""A few mutants of every kernel; ``python -m tests.mutation`` runs more of them."""

import subprocess
import sys

import pytest

from tests.mutation import mutants
from tests.mutation.cases import TESTS

BOUND = 0.85  # killed or explained
GROUPS = [list(TESTS)[i::3] for i in range(3)]


@pytest.mark.parametrize("families", GROUPS, ids="-".join)
def test_the_tests_of_the_kernels_kill_mutants(families, record_property):
    command = [sys.executable, "-m", "tests.mutation", "--family", *families]
    command += ["--mutants", "6", "--kernels", "1", "--bound", str(BOUND)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record_property("mutants", done.stdout.splitlines()[-1])


STATEMENTS = {
    "bar.sync 0": [""],
    "cp.async.wait_group 1": ["", "cp.async.wait_group 2"],
    "cp.async.ca.shared.global [%r1], [%rd2], 8, %r3": [
        "",
        "cp.async.ca.shared.global [%r1+16], [%rd2], 8, %r3",
        "cp.async.ca.shared.global [%r1+-16], [%rd2], 8, %r3",
        "cp.async.ca.shared.global [%r1], [%rd2+16], 8, %r3",
        "cp.async.ca.shared.global [%r1], [%rd2+-16], 8, %r3",
        "cp.async.ca.shared.global [%r1], [%rd2], 8",
    ],
    "@%p1 bra $L": ["bra $L", "@!%p1 bra $L"],
    "setp.lt.u32 %p1, %r1, %r2": [
        "setp.lt.u32 %p1, %r2, %r1",
        "setp.le.u32 %p1, %r1, %r2",
        "setp.lt.s32 %p1, %r1, %r2",
    ],
    "setp.eq.s32 %p1, %r1, 3": [
        "setp.eq.s32 %p1, %r1, 4",
        "setp.eq.s32 %p1, %r1, 2",
        "setp.eq.s32 %p1, %r1, 6",
        "setp.ne.s32 %p1, %r1, 3",
    ],
    "shl.b32 %r1, %r2, 4": ["shl.b32 %r1, %r2, 3", "shl.b32 %r1, %r2, 5", "mov.b32 %r1, %r2"],
    "fma.rn.f32 %f1, %f2, %f3, %f4": ["mul.rn.f32 %f1, %f2, %f3", "mov.f32 %f1, %f2"],
    "@%p2 st.global.v4.f32 [%rd1+32], {%f1, %f2, %f3, %f4}": [
        "",
        "st.global.v4.f32 [%rd1+32], {%f1, %f2, %f3, %f4}",
        "@!%p2 st.global.v4.f32 [%rd1+32], {%f1, %f2, %f3, %f4}",
        "@%p2 st.global.v4.f32 [%rd1+48], {%f1, %f2, %f3, %f4}",
        "@%p2 st.global.v4.f32 [%rd1+16], {%f1, %f2, %f3, %f4}",
    ],
}


@pytest.mark.parametrize("statement", STATEMENTS)
def test_mutants_of_a_statement(statement):
    text = f".version 8.8\n{{\n\t{statement};\n}}\n"
    found = [mutant for kind in mutants.all_mutants(text, {3}).values() for mutant in kind]
    assert [mutant.after for mutant in found] == STATEMENTS[statement]
    for mutant in found:
        assert mutant.apply(text) == text.replace(f"\t{statement};", f"\t{mutant.after};" if mutant.after else "\t")


def test_corrections_of_signs_are_left_alone():
    lines = ["shr.s32 %r2, %r1, 31", "shr.u32 %r3, %r2, 29", "add.s32 %r4, %r1, %r3", "shr.s32 %r5, %r4, 3"]
    text = "".join(f"{line};\n" for line in lines)
    assert {m.line for kind in mutants.all_mutants(text, {1, 2, 3, 4}).values() for m in kind} == {4}
