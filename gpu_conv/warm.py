"""Compile kernels ahead of time, for a GPU that need not be here: in the build of a container, say."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .execute import Recorder, instead, target

if TYPE_CHECKING:
    from .cuda.compiler import Compiled
    from .graph.model import Model


def warmup(
    what: Callable[[], object] | str | os.PathLike[str] | bytes | Any,
    *,
    arch: str,
    dims: Mapping[str, int] | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> list[Compiled]:
    """Fill the disk cache with the kernels that a program or a model will want on a GPU. No GPU is needed.

    The kernel depends on layer, shapes, dtypes and GPU, so the program is gone through on the CPU, with arrays like
    those that it will see; nothing is convolved, results are zeros.

    Args:
        what: a function without arguments that convolves NumPy arrays (of the shapes and dtypes that will later be
            CuPy's); or an ONNX model: path, bytes, or ``onnx.ModelProto``.
        arch: "sm_90a" for an H100; see ``gpu_conv.explain``.
        dims: sizes of the open axes of the model's inputs, by name. Axis 0 is 1 without it.
        report: called with a line of text before every step that takes time.

    Returns:
        The kernels, in the order of their first use. CuPy's own kernels are not among them.

    Raises:
        ValueError: an unknown architecture, an open axis without a size, or a size for no open axis.
        CudaUnavailable: NVRTC is missing.

    Example:
        >>> import numpy as np, gpu_conv
        >>> x, w = np.zeros((8, 32, 28, 28), np.float32), np.zeros((32, 1, 3, 3), np.float32)
        >>> kernels = gpu_conv.warmup(lambda: gpu_conv.conv2d(x, w, groups=32), arch="sm_90a")
        >>> kernels[0].name_expression.partition("<")[0]
        'depthwise_nchw'
    """
    recorder = Recorder(target("emulator", arch))
    if callable(what):
        with instead(recorder):
            what()
    else:
        from . import onnx

        report("reading the model")
        model = onnx.load(what, device="emulator")  # planned as for a GPU; the recorder takes its calls
        inputs = stand_ins(model, dims or {})
        with instead(recorder):
            model(inputs)

    from .cuda import compiler

    names = {launch.name_expression for launch in recorder.launches}
    report(f"compiling {len(names)} kernels for {arch}")
    return compiler.warm(recorder.launches, arch)


def stand_ins(model: Model, dims: Mapping[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    """Zeros for the inputs of a model, open axes sized by ``dims``."""
    arrays = {}
    named = {size for port in model.inputs for size in port.shape or () if isinstance(size, str)}
    if unknown := dims.keys() - named:
        ports = ", ".join(map(str, model.inputs))
        raise ValueError(f"the inputs have no open axis called {', '.join(sorted(unknown))}: {ports}")
    for port in model.inputs:
        if port.shape is None or port.dtype is None:
            raise ValueError(f"the model does not say the shape or type of its input {port}: pass a function instead")
        shape = [_size(size, axis, str(port), dims) for axis, size in enumerate(port.shape)]
        arrays[port.name] = np.zeros(shape, port.dtype)
    return arrays


def _size(size: int | str | None, axis: int, port: str, dims: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size in dims:
        return dims[str(size)]
    if axis == 0:
        return 1
    example = f"{{{size or 'name'!r}: 224}} (in the command: --dim {size or 'name'}=224)"
    raise ValueError(f"axis {axis} of input {port} is open: give its size in dims, as {example}")
