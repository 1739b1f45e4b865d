"""CUDA C++ to a running kernel: source, compiler, disk cache, device. Importing it loads neither CuPy nor NVRTC."""

from gpu_conv.cuda.errors import CompileError, CudaUnavailable

__all__ = ["CompileError", "CudaUnavailable"]
