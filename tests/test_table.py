"""Every row of the dispatch table on every case that it accepts, in the emulator with all checks on."""

import pytest

from gpu_conv import dispatch
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.emulator import Emulator
from gpu_conv.families import wgmma

from .cases import CASES, fill

ARCHITECTURES = ("sm_80", "sm_120")  # the two PTX dialects that NVRTC emits


def accepted(arch, rows=dispatch.TABLE):
    """(row, case) for everything that a kernel can run; the first that dispatch would choose comes with all cases."""
    target = KNOWN_TARGETS[arch]
    for case in CASES:
        problem = fill(case, exact=True).call.problem
        for row in rows:
            if row.refuses(problem, target) is None:
                yield pytest.param(arch, row, case, id=f"{arch}-{row.name}-{case}")


EVERYWHERE = [p for arch in ARCHITECTURES for p in accepted(arch)]


@pytest.mark.parametrize(("arch", "row", "case"), EVERYWHERE + list(accepted("sm_90a", wgmma.ROWS)))
def test_row(arch, row, case):
    emulator, target = Emulator(arch), KNOWN_TARGETS[arch]
    for exact in (True, False):
        filled = fill(case, exact=exact)
        report = emulator.run(row.plan(filled.call.problem, target), filled.call.operands)
        assert report.ok, str(report)
        filled.check()


@pytest.mark.parametrize("arch", KNOWN_TARGETS)
def test_every_case_has_a_kernel(arch):
    for case in CASES:
        assert dispatch.select(fill(case, exact=True).call.problem, KNOWN_TARGETS[arch])
