"""``gpu-conv emulate``: one convolution on random numbers in the emulator, all checks on, its counters as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from .. import dispatch, execute
from ..arguments import Call, prepare
from ..emulator import Emulator
from ..emulator.report import Report
from .explain import element_type, numbers, shape
from .output import out, print_json, progress


def emulate(
    x: str,
    w: str,
    texts: Mapping[str, str],
    options: Mapping[str, Any],
    arch: str,
    kernel: str | None,
    seed: int | None,
    as_json: bool = False,
) -> bool:
    """Run and print; returns whether nothing was found. ``seed`` makes the schedule of blocks and warps random.

    Raises:
        ValueError, TypeError: as ``gpu_conv.conv``, or the forced kernel refuses, or there is nothing to compute.
    """
    given = {name: value for name, value in options.items() if value is not None}
    dtype = element_type(given.pop("dtype"))
    rng = np.random.default_rng(0)
    given |= {name: numbers(name, text) for name, text in texts.items()}
    data, filters = (rng.standard_normal(shape(name, text)).astype(dtype) for name, text in (("x", x), ("w", w)))
    call = prepare(data, filters, **given)
    if not call.problem.y.size:
        raise ValueError(f"the output is empty, there is nothing to run: {call.problem}")
    target = execute.target("emulator", arch)
    launch = dispatch.plan(call.problem, target, kernel)
    with progress(f"running {launch.name_expression.partition('<')[0]}"):
        report = Emulator(arch, seed=seed, strict=False).run(launch, call.operands)
    if as_json:
        facts = {"problem": str(call.problem), "arch": arch, "kernel": launch.name_expression, "grid": launch.grid}
        findings = [str(finding) for finding in report.findings]
        print_json(facts | {"block": launch.block, "findings": findings, "counters": _counters(call, report)})
        return report.ok
    out.print(str(call.problem), markup=False, soft_wrap=True)
    where = f"{launch.name_expression} on {arch}, grid {launch.grid}, block {launch.block}"
    out.print(where, markup=False, soft_wrap=True)
    out.print(_table(call, report))
    for finding in report.findings:
        out.print(str(finding), style="red", markup=False, soft_wrap=True)
    return report.ok


def _counters(call: Call, report: Report) -> dict[str, float]:
    c, outputs = report.counters, call.problem.y.size
    return {
        "findings": len(report.findings),
        "instructions per output": c.thread_instructions / outputs,
        "active lanes per instruction": c.simt_efficiency,
        "sectors per load request": c.load_sectors_per_request,
        "sectors per store request": c.store_sectors_per_request,
        "distinct bytes moved over the least": (c.bytes_read + c.bytes_written) / call.problem.bytes,
        "shared-memory wavefronts over conflict-free": c.bank_conflict_factor,
        "mma instructions": c.mma,
        "basic blocks": c.block_count,
        "basic blocks covered": c.blocks_covered,
    }


def _table(call: Call, report: Report) -> Table:
    table = Table("counter (emulated)", "value")
    for name, value in _counters(call, report).items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    return table
