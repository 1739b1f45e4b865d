"""What can go wrong between CUDA C++ and a finished launch: one type for each, the repair in the message."""

from __future__ import annotations


class CudaUnavailable(RuntimeError):
    """A part of the CUDA stack is missing; the message names the part and the command that repairs it."""


class NvrtcMissing(CudaUnavailable):
    """The compiler of the kernels is not installed."""


class DriverTooOld(CudaUnavailable):
    """There is no NVIDIA driver, or one that is older than CuPy or the compiled kernel needs."""


class CompileError(RuntimeError):
    """NVRTC refused a kernel; the message carries its log, which names the file and line below ``kernels/``."""


class UnsupportedArchitecture(CompileError):
    """NVRTC has no such architecture: the GPU is newer than it, or too old for it."""


class OutOfMemory(MemoryError):
    """The GPU has no memory left for a workspace or for the code of a kernel. CuPy's own is a MemoryError too."""


class LaunchFailed(RuntimeError):
    """The driver refused a launch, or reports with it that an earlier kernel of the process failed."""
