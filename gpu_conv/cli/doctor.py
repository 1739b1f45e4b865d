"""``gpu-conv doctor``: what works here, what is missing, and the command that repairs it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata

import numpy as np
from rich.markup import escape
from rich.table import Table

import gpu_conv

from .output import counted, out, print_json, progress


@dataclass(frozen=True)
class Check:
    """One ability: whether it is there, what was found, and what brings it."""

    name: str
    works: bool
    found: str
    repair: str | None = None


def doctor(required: Sequence[str], as_json: bool = False) -> bool:
    """Print all checks; returns whether the required ones passed.

    Raises:
        ValueError: something required that is not checked.
    """
    for name in required:
        if name not in CHECKS:
            raise ValueError(f"--require {name}: expected one of {', '.join(CHECKS)}")
    with progress("looking around") as step:
        checks = [_tried(name, step) for name in CHECKS]
    failed = [check.name for check in checks if check.name in required and not check.works]
    if as_json:
        facts = {"version": gpu_conv.__version__, "python": platform.python_version(), "platform": platform.platform()}
        print_json(facts | {"checks": [asdict(check) for check in checks], "required": required, "failed": failed})
        return not failed
    out.print(
        f"gpu-conv {gpu_conv.__version__}, Python {platform.python_version()}, {platform.platform()}", markup=False
    )
    table = Table("", "what")
    for column in ("found", "repair"):
        table.add_column(column, overflow="fold")  # a path is worth nothing with its end cut off
    for check in checks:
        mark = "[green]yes[/]" if check.works else "[red]no[/]" if check.name in required else "[yellow]no[/]"
        table.add_row(mark, check.name, escape(check.found), escape(check.repair or ""))
    out.print(table)
    if failed:
        out.print(f"required and missing: {', '.join(failed)}", style="red")
    else:
        out.print(f"Nothing is missing that is required ({', '.join(required)}); the rest is optional.")
    return not failed


def _tried(name: str, step: Callable[[str], None]) -> Check:
    step(f"trying {name}")
    try:
        return Check(name, True, CHECKS[name]())
    except _Missing as error:
        return Check(name, False, str(error), error.repair)


class _Missing(Exception):
    def __init__(self, found: object, repair: str | None) -> None:
        super().__init__(str(found))
        self.repair = repair


# ---------------------------------------------------------------------------------------------------------- the checks

_X = np.arange(-8, 8, dtype=np.float32).reshape(1, 1, 4, 4)
_W = np.ones((1, 1, 3, 3), np.float32)
_Y = np.array([[-27, -18], [9, 18]], np.float32)  # sums of the four 3x3 windows of _X


def _convolves(xp: object, device: str | None) -> None:
    y = gpu_conv.conv2d(xp.asarray(_X), xp.asarray(_W), device=device)  # type: ignore[attr-defined]
    host = y.get() if hasattr(y, "get") else y
    if not np.array_equal(host[0, 0], _Y):
        raise _Missing(f"a 3x3 convolution gives {host.tolist()}, expected {_Y.tolist()}", "please report this")


def _cpu() -> str:
    _convolves(np, "cpu")
    return f"NumPy {np.__version__}"


def _blas() -> str:
    from ..cpu import gemm

    found = gemm.openblas()
    vectors = {"X86_V4", "AVX512_SKX"} & set(np.show_config(mode="dicts")["SIMD Extensions"].get("found", ()))
    if found and vectors and not any(library["architecture"].lower() in gemm.KERNELS for library in found):
        told = "OPENBLAS_CORETYPE" in os.environ
        repair = "unset OPENBLAS_CORETYPE" if told else "export OPENBLAS_CORETYPE=SkylakeX"
        raise _Missing(f"{gemm.blas()}, without this processor's AVX-512: twice the time", repair)
    return gemm.blas()


def _emulator() -> str:
    from ..cuda import CudaUnavailable, compiler

    try:
        version = compiler.nvrtc_version()
        _convolves(np, "emulator")
    except CudaUnavailable as error:
        raise _Missing(_first(error), "pip install 'gpu-conv[emulator]'") from error
    return f"NVRTC {version}"


def _cuda() -> str:
    from ..cuda import CudaUnavailable, device

    twice = [d for d in _distributions() if d.startswith("cupy-cuda")]
    if len(twice) > 1:
        raise _Missing(f"{' and '.join(twice)} hide each other", f"pip uninstall {' '.join(twice[:-1])}")
    try:
        cupy = device.cupy()
        target = device.target()
        _convolves(cupy, "cuda")
    except CudaUnavailable as error:
        repair = "install or update the NVIDIA driver" if "NVIDIA driver" in str(error) else None
        raise _Missing(_first(error), repair or "pip install 'gpu-conv[cuda13]'") from error
    return f"{target.name} ({target.arch}), CuPy {cupy.__version__}"


def _cache() -> str:
    from ..cachedir import cache_dir
    from ..cuda import cache

    kernels, size, writable = cache.status()
    where = f"{cache_dir('kernels')}: {counted(kernels, 'kernel')}, {size / 1e6:.1f} MB"
    if not writable:
        raise _Missing(
            f"{where}, which this user cannot write, or others can", "set GPU_CONV_CACHE to a folder of your own"
        )
    return where


def _installed(what: str, *distributions: str) -> Callable[[], str]:
    """Looks for distributions without importing them: that would take seconds."""

    def check() -> str:
        found = []
        for name in distributions:
            try:
                found.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                raise _Missing(f"{name} is not installed", f"pip install {what}") from None
        return ", ".join(found)

    return check


CHECKS: dict[str, Callable[[], str]] = {
    "cpu": _cpu,
    "blas": _blas,
    "emulator": _emulator,
    "cuda": _cuda,
    "cache": _cache,
    "onnx": _installed("'gpu-conv[onnx]'", "onnx"),
    "demo": _installed("'gpu-conv[demo]'", "onnx", "pillow", "scikit-image", "scikit-learn"),
    "bench": _installed("'gpu-conv[bench]'", "matplotlib"),
    "dask": _installed("'gpu-conv[dask]'", "dask", "distributed"),
    "torch": _installed("torch", "torch"),
    "jax": _installed("jax", "jax"),
}


def _distributions() -> list[str]:
    return sorted({d.metadata["Name"].lower() for d in metadata.distributions() if d.metadata["Name"]})


def _first(error: BaseException) -> str:
    """The head of a message: what is missing. The command that repairs it has a column of its own."""
    return str(error).splitlines()[0].partition(": ")[0]
