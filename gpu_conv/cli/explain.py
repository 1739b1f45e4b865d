"""``gpu-conv explain``: shapes and options as text in, the report of ``gpu_conv.explain`` out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import gpu_conv

from ..cuda import device as gpu
from .output import out, print_json, progress

_PADDINGS = ("valid", "same_upper", "same_lower")


def explain(x: str, w: str, texts: Mapping[str, str], options: Mapping[str, Any], as_json: bool = False) -> None:
    """Print the report. ``texts`` are options that still have to be parsed, ``options`` may hold None for "not given".

    Raises:
        ValueError: a text that is no shape or list of numbers, or what ``gpu_conv.explain`` refuses.
        TypeError: an element type that there is no convolution for.
        CudaUnavailable: ``device`` is "cuda", and there is none.
    """
    parsed = {name: numbers(name, text) for name, text in texts.items()}
    given = {name: value for name, value in options.items() if value is not None}
    given["dtype"] = element_type(given["dtype"])
    operands: dict[str, Any] = {"x": shape("x", x), "w": shape("w", w)}
    if given.get("device") == "cuda":  # a shape alone would be a NumPy array's
        operands = {name: gpu.cupy().zeros(sizes, given["dtype"]) for name, sizes in operands.items()}
    with progress("planning and compiling"):
        report = gpu_conv.explain(**operands, **parsed, **given)
    if as_json:
        print_json(_facts(report))
    else:
        out.print(str(report), markup=False, soft_wrap=True)


def _facts(report: gpu_conv.Explanation) -> dict[str, Any]:
    launch, target = report.launch, report.target
    facts: dict[str, Any] = {"problem": str(report.problem), "device": report.device, "kernel": report.kernel}
    facts["rows"] = [{"kernel": name, "passed_over": reason} for name, reason in report.rows]
    facts["target"] = target and {"arch": target.arch, "name": target.name, "bandwidth": target.bandwidth or None}
    facts["launch"] = launch and {"kernel": launch.name_expression, "grid": launch.grid, "block": launch.block}
    names = ("registers", "shared_bytes", "flops", "bytes", "workspace_bytes", "floor_us")
    return facts | {name: getattr(report, name) for name in names}


def shape(name: str, text: str) -> tuple[int, ...]:
    """``1,32,112,112`` as a tuple."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--{name} {text}: a shape is a list of sizes such as 1,32,112,112")
    return tuple(map(int, parts))


def element_type(text: str) -> np.dtype[Any]:
    """``float16`` as a type of NumPy; ``bfloat16`` is one since ml_dtypes is imported."""
    try:
        return np.dtype(text)
    except TypeError:
        known = "float32, float16, bfloat16, float64, int8, uint8"
        raise TypeError(f"--dtype {text}: expected {known}, or another type of NumPy") from None


def numbers(name: str, text: str) -> Any:
    """``2`` is an integer, ``2,1`` a list, ``0:1,2:2`` a list of pairs; a padding may also be a word."""
    if name == "padding" and text in _PADDINGS:
        return text
    try:
        parts = [[int(number) for number in part.split(":")] for part in text.split(",")]
    except ValueError:
        parts = []
    if parts and all(len(part) == 1 for part in parts):
        return parts[0][0] if len(parts) == 1 else tuple(part[0] for part in parts)
    if name == "padding" and parts and all(len(part) == 2 for part in parts):
        return tuple((lo, hi) for lo, hi in parts)
    words = f", pairs 0:1,0:1, or {', '.join(_PADDINGS)}" if name == "padding" else ""
    raise ValueError(f"--{name} {text}: expected an integer, one for each axis as 2,1{words}")
