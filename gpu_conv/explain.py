"""Why this kernel: what ``explain`` returns and prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import execute
from .arguments import prepare
from .borrow import borrow
from .launch import Launch, Target
from .problem import ConvProblem


@dataclass(frozen=True)
class Explanation:
    """How one convolution would run.

    Attributes:
        problem: what is computed.
        device: "cpu", "cuda" or "emulator".
        kernel: the chosen row of the dispatch table, "phases" where each phase of a dilated input is a launch of its
            own, or the NumPy engine's strategy.
        rows: every row of the table, in order, with the reason why it refuses, None where it could run.
        target: the GPU planned for; None on the CPU.
        launch: grid, block, template arguments (of the first phase); None on the CPU.
        registers, shared_bytes: per thread and per block, of the compiled kernel; None if it was not compiled.
        flops, bytes: work and least memory traffic.
        workspace_bytes: scratch memory.
    """

    problem: ConvProblem
    device: str
    kernel: str
    rows: tuple[tuple[str, str | None], ...]
    target: Target | None
    launch: Launch | None
    registers: int | None
    shared_bytes: int | None
    flops: int
    bytes: int
    workspace_bytes: int

    @property
    def floor_us(self) -> float | None:
        """Microseconds that moving ``bytes`` takes at the target's bandwidth; None where that is not known."""
        return self.bytes / self.target.bandwidth * 1e6 if self.target and self.target.bandwidth else None

    def __str__(self) -> str:
        lines = [str(self.problem), f"  device   {self.device}" + (f", {self.target.name}" if self.target else "")]
        width = max(18, *(len(name) for name, _ in self.rows))
        for name, reason in self.rows:
            mark = "->" if name == self.kernel else "  "
            lines.append(f"  {mark} {name:<{width}} {reason or ('chosen' if name == self.kernel else 'could run it')}")
        if self.launch:
            lines.append(f"  launch   {self.launch.name_expression}")
            lines.append(f"           grid {self.launch.grid}, block {self.launch.block}")
        if self.registers is not None:
            lines.append(f"           {self.registers} registers, {self.shared_bytes} bytes of shared memory")
        lines.append(f"  work     {self.flops / 1e6:.3g} MFLOP, at least {self.bytes / 1e6:.3g} MB moved")
        if self.floor_us is not None and self.target:
            lines.append(f"  floor    {self.floor_us:.1f} us at {self.target.bandwidth / 1e12:.2f} TB/s")
        if self.workspace_bytes:
            lines.append(f"  scratch  {self.workspace_bytes / 1e6:.3g} MB")
        return "\n".join(lines)


def explain(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    transposed: bool = False,
    dtype: Any = "float32",
    arch: str | None = None,
    kernel: str | None = None,
    device: str | None = None,
    **options: Any,
) -> Explanation:
    """Say how :func:`gpu_conv.conv` would compute this, without computing it.

    Args:
        x, w, bias: arrays, or their shapes as tuples (then of ``dtype``).
        transposed: explain :func:`gpu_conv.conv_transpose` instead.
        dtype: element type where shapes are given.
        arch: plan for a known GPU of this architecture ("sm_90a"), with no GPU at hand.
        kernel, device, **options: as in :func:`gpu_conv.conv`.

    Raises:
        ValueError, TypeError: what the call itself would raise.

    Example:
        >>> import gpu_conv
        >>> print(gpu_conv.explain((1, 8, 16, 16), (8, 1, 3, 3), groups=8, padding=1))
        1 x 8 -> 8 channels, 16x16 -> 16x16, filter 3x3, float32 -> float32, groups 8, padding ((1, 1), (1, 1))
          device   cpu
          -> depthwise_rows     chosen
          work     0.0369 MFLOP, at least 0.0167 MB moved
          scratch  0.0269 MB
    """
    # Zeros, not empty: the NumPy engine looks for infinite weights. The system hands them out untouched.
    arrays = [a if a is None or hasattr(a, "dtype") else np.zeros(a, np.dtype(dtype)) for a in (x, w, bias)]
    with borrow(dict(zip(("x", "w", "bias"), arrays, strict=True)) | options) as lent:
        call = prepare(**lent.arguments, transposed=transposed)
        where = execute.device_of(call.library, device or ("emulator" if arch and call.library == "numpy" else None))
        if where == "cpu":
            execute.check_on_cpu(kernel, arch)
            return _on_cpu(call.problem, call.operands)
        if isinstance(where, execute.Recorder):
            return _on_gpu(call.problem, "recorder", where.target, kernel)
        return _on_gpu(call.problem, where, execute.target(where, arch), kernel)


def _on_cpu(problem: ConvProblem, operands: dict[str, Any]) -> Explanation:
    from . import cpu

    ready = cpu.prepare(problem, operands["w"], operands["bias"], operands["w_zero_point"])
    rows = ((ready.name, None),)
    work = (problem.flops, problem.bytes, ready.workspace_bytes)
    return Explanation(problem, "cpu", ready.name, rows, None, None, None, None, *work)


def _passed_over(problem: ConvProblem, kernel: str) -> str | None:
    from . import dispatch

    reason = dispatch.passed_over(problem, kernel)
    return reason and f"could run it, passed over: {reason}"


def _on_gpu(problem: ConvProblem, device: str, target: Target, kernel: str | None) -> Explanation:
    from . import choices, dispatch
    from .cuda import CudaUnavailable, compiler

    tuned = choices.current()
    name = dispatch.select(problem, target, kernel, tuned).name
    rows = [(r.name, r.refuses(problem, target) or _passed_over(problem, r.name)) for r in dispatch.TABLE]
    steps = dispatch.steps(problem, target, kernel, tuned)
    launch = steps[0].launch
    if any(d > 1 for d in problem.input_dilations):
        rows.insert(0, ("phases", dispatch.unphased(problem, target)))
        name = "phases" if len(steps) > 1 else name
    registers = shared = None
    try:
        compiled = compiler.compile_launch(launch, target.arch)
        registers, shared = compiled.registers, compiled.shared_bytes + launch.shared_bytes
    except CudaUnavailable:
        pass  # without NVRTC the choice can still be explained
    work = (problem.flops, problem.bytes, max(step.launch.workspace_bytes for step in steps))
    return Explanation(problem, device, name, tuple(rows), target, launch, registers, shared, *work)
