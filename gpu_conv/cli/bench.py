"""``gpu-conv bench``: layers beside the other libraries that are installed, as a table, as JSON and as a picture."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..bench import SCHEMA, cpu
from .explain import element_type
from .output import counted, out, print_json, progress

BUSY = 0.15  # share of the machine that other programs may use before the table warns

Row = dict[str, Any]


def bench(device: str, options: dict[str, Any], as_json: bool, plot: Path | None) -> None:
    """Measure, print, and draw if asked.

    Args:
        device: "cpu" or "cuda".
        options: ``threads``, ``rounds``, ``peers`` on the CPU; ``dtypes``, ``batch``, ``peers`` on the GPU; ``only``.
        as_json: one document instead of tables.
        plot: an SVG, PNG or PDF file for a picture of the ratios.

    Raises:
        ValueError: another device, no layer of that name, a picture of an unknown format or of nothing.
        TypeError: an unknown element type.
        ModuleNotFoundError: ``plot`` without Matplotlib.
        CudaUnavailable: there is no CUDA device.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"bench measures on cpu or cuda, not on {device}: the emulator has no clock")
    for name in options.get("dtypes", ()):
        element_type(name)
    if plot:
        from ..bench.plot import canvas

        formats = canvas()().canvas.get_supported_filetypes()  # what is missing is better found before than after
        if plot.suffix[1:] not in formats:
            raise ValueError(f"--plot {plot}: expected a file name that ends in one of .{', .'.join(formats)}")
        if not plot.parent.is_dir():
            raise ValueError(f"--plot {plot}: there is no folder {plot.parent}")
        if device == "cpu" and not any(map(find_spec, options["peers"])):
            raise ValueError("--plot draws ratios to other libraries, and none is installed: pip install onnxruntime")
    document = _cuda(**options, show=not as_json) if device == "cuda" else _cpu(**options, show=not as_json)
    if not document["rows"]:
        raise ValueError(f"--only {options['only']}: no layer is called that")
    if as_json:
        print_json(document)
    if plot:
        from ..bench.plot import bars_of

        bars_of(document, plot)
        if not as_json:
            out.print(f"drawn into {plot}", markup=False, soft_wrap=True)


def peers(device: str, given: Sequence[str] | None) -> list[str]:
    """Those asked for, or all.

    Raises:
        ValueError: one is unknown.
        ModuleNotFoundError: one that was asked for is not installed (on the GPU its rows say so).
    """
    known: Sequence[str] = tuple(cpu.PEERS)
    if device == "cuda":
        known = ("torch_nhwc", "torch_nchw", "torch_matmul", "cupy_matmul")
    for name in given or ():
        if name not in known:
            raise ValueError(f"--peer {name}: expected one of {', '.join(known)}")
        if device == "cpu" and find_spec(name) is None:
            raise ModuleNotFoundError(f"--peer {name} is not installed: pip install {name}")
    return list(given or known)


def on_cpu(threads: Sequence[int], rounds: int, only: str, peers: Sequence[str]) -> None:
    """The tables of the NumPy engine, one per thread count."""
    _cpu(threads, rounds, only, peers, show=True)


# ---------------------------------------------------------------------------------------------------------------- CPU


def _cpu(threads: Sequence[int], rounds: int, only: str, peers: Sequence[str], show: bool) -> Row:
    rows: list[Row] = []
    with progress("measuring") as step:
        for row in cpu.rows(threads, rounds, only, peers):
            rows.append(row)
            step(f"after {row['kind']} {row['name']}, {counted(row['threads'], 'thread')}")
    for count in threads if show else ():
        if here := [row for row in rows if row["threads"] == count]:
            show_cpu(count, here)
    environment = {"gpu_conv": __version__, "numpy": np.__version__, "python": platform.python_version()}
    environment |= {"machine": platform.machine(), "system": platform.system()}
    return {"schema": SCHEMA, "device": "cpu", "environment": environment, "rows": rows}


def best_peer(row: Row) -> float | None:
    """Milliseconds of the fastest other library; None where none ran."""
    return min((ms for name, ms in row["ms"].items() if name not in ("NHWC", "NCHW")), default=None)


def show_cpu(threads: int, rows: Sequence[Row]) -> None:
    """One table; ratios are times over that of the fastest of the others."""
    names = [name for name in cpu.PEERS if any(name in row["ms"] for row in rows)]
    against = names[0] if len(names) == 1 else "the fastest other"
    title = f"float32, batch 1, {counted(threads, 'thread')}: ms"
    table = Table(title=f"{title}, and ratio to {against} (below 1: gpu_conv is faster)" if names else title)
    for column in ("layer", *names, "NHWC", "ratio", "NCHW", "ratio", "strategy", "extra KiB"):
        table.add_column(column, justify="left" if column in ("layer", "strategy") else "right")
    ratios: dict[str, list[float]] = {}
    for row in rows:
        best, cells = best_peer(row), []
        for name in ("NHWC", "NCHW"):
            ms = row["ms"].get(name)
            cells += [f"{ms:.3f}" if ms else "", f"{ms / best:.2f}" if ms and best else ""]
        if best:
            ratios.setdefault(row["kind"], []).append(row["ms"]["NHWC"] / best)
        theirs = [f"{row['ms'][name]:.3f}" if name in row["ms"] else "" for name in names]
        table.add_row(f"{row['kind']} {row['name']}", *theirs, *cells, row["strategy"], str(row["extra"]))
    console = Console(width=120, highlight=False)
    console.print(table)
    for kind, values in ratios.items():
        console.print(f"{kind}: geometric mean {geometric_mean(values):.2f}, worst {max(values):.2f}")
    console.print(f"NumPy's matrix products: {rows[0]['blas']}")
    busy = max(float(row["foreign"]) for row in rows)
    if busy > BUSY:
        console.print(f"[yellow]Other programs used up to {busy:.0%} of the machine: ratios are less certain.[/yellow]")


# ---------------------------------------------------------------------------------------------------------------- GPU


def _cuda(dtypes: Sequence[str], batch: int | None, only: str, peers: Sequence[str], show: bool) -> Row:
    from ..bench import gpu

    device = gpu.Device()
    wanted = list(gpu.layers(only, dtypes, batch))
    copy = device.copy_bandwidth()
    rows = []
    with progress("measuring") as step:
        for number, layer in enumerate(wanted, 1):
            step(f"{number} of {len(wanted)}: {layer.name} {layer.case.dtype} {layer.layout}")
            rows.append(gpu.row(layer, device, peers, copy))
    environment = {"gpu_conv": __version__, "gpu": device.target.name, "arch": device.target.arch}
    if show and rows:
        show_gpu(device.target.name, rows)
    return {"schema": SCHEMA, "device": "cuda", "environment": environment, "copy_bytes_per_s": copy, "rows": rows}


def show_gpu(name: str, rows: Sequence[Row]) -> None:
    """One table of times, and what did not run."""
    table = Table(title=f"{name}: us, and how many times faster than the fastest other")
    columns = ("layer", "batch", "dtype", "layout", "kernel", "us", "of copy", "fastest other", "us", "times faster")
    for column in columns:
        table.add_column(column, justify="left" if column in ("layer", "kernel", "fastest other") else "right")
    for row in rows:
        head = (row["layer"], str(row["batch"]), row["dtype"], row["layout"])
        if "error" in row:
            table.add_row(*head, "failed")
            continue
        ran = {peer: timing["us"] for peer, timing in row["peers"].items() if "us" in timing}
        best = min(ran, key=lambda peer: ran[peer], default=None)
        theirs = (best, f"{ran[best]:.1f}", f"{ran[best] / row['us']:.2f}") if best else ("", "", "")
        share = f"{row['of_copy']:.0%}" if row["of_copy"] else ""
        table.add_row(*head, row["kernel"], f"{row['us']:.1f}", share, *theirs)
    out.print(table)
    for row in rows:
        wrong = row.get("error_over_tolerance", 0)
        if "error" in row or wrong > 1:
            reason = row.get("error") or f"wrong: {wrong} of the tolerance"
            out.print(f"{row['layer']} {row['dtype']} {row['layout']}: {reason}", style="red", markup=False)
    shares = [row["of_copy"] for row in rows if row.get("of_copy")]
    if shares:
        out.print(f"median share of the copy bandwidth: {median(shares):.0%}")
