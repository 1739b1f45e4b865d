"""``gpu-conv warmup``: a model's kernels into the disk cache, for GPUs that need not be here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

import gpu_conv

from .. import execute
from .output import out, print_json, progress


def warmup(model: str, archs: Sequence[str], dims: Sequence[str], as_json: bool = False) -> None:
    """Compile and print what is in the cache by then.

    Raises:
        ValueError: no such model, an unknown architecture, an open axis without a size.
        CudaUnavailable: NVRTC is missing.
    """
    sizes = dims_of(dims)
    anew = _Count()
    logger = logging.getLogger("gpu_conv.cuda.compiler")
    logger.addHandler(anew)
    logger.setLevel(logging.INFO)
    kernels = []
    with progress(f"loading {model}") as step:
        path = find_model(model, step)
        for arch in archs or [execute.target("cuda").arch]:
            kernels += gpu_conv.warmup(path, arch=arch, dims=sizes, report=step)
    if as_json:
        facts = [{"arch": k.arch, "kernel": k.name_expression, "registers": k.registers} for k in kernels]
        print_json({"model": model, "kernels": facts, "compiled": anew.count})
        return
    table = Table("arch", "registers", "kernel")
    for kernel in kernels:
        table.add_row(kernel.arch, str(kernel.registers), kernel.name_expression)
    out.print(table)
    out.print(f"{len(kernels)} kernels, {anew.count} of them compiled now, the others were in the cache")


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


class _Count(logging.Handler):
    """Counts what the compiler logs: one line per kernel that was not in the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += str(record.msg).startswith("compiling")


def dims_of(texts: Sequence[str]) -> dict[str, int]:
    """``n=32`` and the like, by name."""
    return dict(_dim(text) for text in texts)


def _dim(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not (name and size.isdecimal() and int(size)):
        raise ValueError(f"--dim {text}: expected NAME=SIZE with a size of at least 1, as side=224")
    return name, int(size)
