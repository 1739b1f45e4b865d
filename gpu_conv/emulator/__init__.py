"""Run CUDA kernels without a GPU: the PTX that NVRTC emits, executed by NumPy, with every access checked.

``run(launch, operands)`` is the device interface; :class:`Emulator` gives control over architecture, checks and
schedule, and :meth:`Emulator.execute` runs any PTX. An error in the kernel raises :class:`EmulationError`, whose
``report`` names source line, block, thread and allocation; the report of a clean run carries the counters.
"""

from __future__ import annotations

from .emulator import DEFAULT_ARCH, Emulator, last_report, run
from .errors import PtxSyntaxError, UnsupportedPtx
from .report import EmulationError, Finding, Report

__all__ = [
    "DEFAULT_ARCH",
    "EmulationError",
    "Emulator",
    "Finding",
    "PtxSyntaxError",
    "Report",
    "UnsupportedPtx",
    "last_report",
    "run",
]
