"""``gpu-conv warmup``: a model's kernels into the disk cache, for GPUs that need not be here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

import gpu_conv

from .. import execute
from ..cuda import CudaUnavailable
from .output import counted, out, print_json, progress


def warmup(model: str, archs: Sequence[str], dims: Sequence[str], as_json: bool = False) -> None:
    """Compile and print what is in the cache by then.

    Raises:
        ValueError: no such model, an unknown architecture, an open axis without a size.
        CudaUnavailable: NVRTC is missing, or there is neither an architecture nor a GPU.
        OSError: kernels were compiled, and the cache did not keep them.
    """
    sizes = dims_of(dims)
    compiled, refused = _Messages("compiler", logging.INFO), _Messages("cache", logging.WARNING)
    kernels = []
    with progress(f"loading {model}") as step:
        path = find_model(model, step)
        for arch in archs or [_arch_here()]:
            kernels += gpu_conv.warmup(path, arch=arch, dims=sizes, report=step)
    if refused.lines:
        raise OSError(refused.lines[0])
    anew = sum(line.startswith("compiling") for line in compiled.lines)
    if as_json:
        facts = [{"arch": k.arch, "kernel": k.name_expression, "registers": k.registers} for k in kernels]
        print_json({"model": model, "kernels": facts, "compiled": anew})
        return
    table = Table("arch", "registers", "kernel")
    for kernel in kernels:
        table.add_row(kernel.arch, str(kernel.registers), kernel.name_expression)
    out.print(table)
    out.print(f"{counted(len(kernels), 'kernel')}: {anew} compiled now, {len(kernels) - anew} in the cache before")


def _arch_here() -> str:
    try:
        return execute.target("cuda").arch
    except CudaUnavailable as error:
        raise CudaUnavailable(f"without a GPU, say which one to compile for: --arch sm_90a. Here {error}") from error


def find_model(model: str, step: Callable[[str], None]) -> Path:
    """A file, or a pretrained model by name."""
    if Path(model).is_file():
        return Path(model)
    try:
        from .. import models
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the pretrained models need {error.name}: pip install 'gpu-conv[demo]'") from error
    if model not in models.MODELS:
        raise ValueError(f"{model}: neither a file nor one of {', '.join(models.MODELS)}")
    return models.path(model, step)


class _Messages(logging.Handler):
    """What a module of ``gpu_conv.cuda`` logs."""

    def __init__(self, module: str, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []
        logger = logging.getLogger(f"gpu_conv.cuda.{module}")
        logger.addHandler(self)
        logger.setLevel(min(level, logger.getEffectiveLevel()))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def dims_of(texts: Sequence[str]) -> dict[str, int]:
    """``n=32`` and the like, by name."""
    return dict(_dim(text) for text in texts)


def _dim(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not (name and size.isdecimal() and int(size)):
        raise ValueError(f"--dim {text}: expected NAME=SIZE with a size of at least 1, as side=224")
    return name, int(size)
