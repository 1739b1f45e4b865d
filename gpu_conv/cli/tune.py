"""``gpu-conv tune``: measures the kernels of a model or a layer on this GPU, for programs that ask for the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

import gpu_conv

from .. import choices, execute
from .explain import element_type, numbers, shape
from .output import out, print_json, progress
from .warmup import dims_of, find_model


def tune(
    model: str | None,
    x: str | None,
    w: str | None,
    texts: Mapping[str, str],
    options: Mapping[str, Any],
    dims: Sequence[str],
    path: Path | None,
    most: int,
    as_json: bool = False,
) -> None:
    """Measure, write the file and print what was chosen; either ``model`` or ``x`` and ``w`` are given.

    Raises:
        ValueError, TypeError: as ``gpu_conv.tune``, or neither or both of model and layer.
        CudaUnavailable: there is no CUDA device.
    """
    if (model is None) == (x is None) or (x is None) != (w is None):
        raise ValueError("give a model, or a layer by --x and --w")
    file = path or choices.default_path(execute.target("cuda"))
    common: dict[str, Any] = {"path": file, "most": most}
    with progress(f"loading {model}" if model else "planning") as step:
        if model:
            found = gpu_conv.tune(find_model(model, step), dims=dims_of(dims), report=step, **common)
        else:
            given = {name: value for name, value in options.items() if value is not None}
            given |= {name: numbers(name, text) for name, text in texts.items()}
            given["dtype"] = element_type(given["dtype"])
            found = gpu_conv.tune(shape("x", x or ""), shape("w", w or ""), report=step, **given, **common)
    if as_json:
        print_json({"file": file, "choices": [_facts(choice) for choice in found]})
        return
    table = Table("problem", "kernel", "tile", "us", "table's us", "times faster")
    for choice in found:
        tile = " ".join(str(int(v)) for v in choice.tile.values()) if choice.tile else ""
        times = (f"{choice.us:.1f}", f"{choice.table_us:.1f}", f"{choice.speedup:.2f}")
        table.add_row(choice.summary, choice.kernel, tile, *times)
    out.print(table)
    out.print(f"{len(found)} choices in {file}; a program takes them with gpu_conv.tuned()", soft_wrap=True)


def _facts(choice: choices.Choice) -> dict[str, Any]:
    facts = {name: getattr(choice, name) for name in ("summary", "kernel", "tile", "us", "table_us", "speedup")}
    return facts | {"tried": list(choice.tried)}
