"""What can be missing or go wrong between CUDA C++ and a loaded kernel."""

from __future__ import annotations


class CudaUnavailable(RuntimeError):
    """A part of the CUDA stack is missing; the message names the part and the command that repairs it."""


class CompileError(RuntimeError):
    """NVRTC refused a kernel; the message carries its log, which names the file and line below ``kernels/``."""
