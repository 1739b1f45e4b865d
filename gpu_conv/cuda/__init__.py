"""CUDA C++ to a running kernel: source, compiler, disk cache, device. Importing it loads neither CuPy nor NVRTC."""

from gpu_conv.cuda.errors import (
    CompileError,
    CudaUnavailable,
    DriverTooOld,
    LaunchFailed,
    NvrtcMissing,
    OutOfMemory,
    UnsupportedArchitecture,
)

__all__ = [
    "CompileError",
    "CudaUnavailable",
    "DriverTooOld",
    "LaunchFailed",
    "NvrtcMissing",
    "OutOfMemory",
    "UnsupportedArchitecture",
]
