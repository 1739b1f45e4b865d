"""``gpu-conv run``: an ONNX model on .npy files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from .output import counted, out, print_json, progress
from .session import Array, Session


def run(model: Path, inputs: Sequence[str], output: Path | None, device: str, as_json: bool = False) -> None:
    """Print a table of the outputs, and save them below ``output`` if it is given.

    Raises:
        ValueError: an input that is not NAME=FILE.npy, or no array, or does not fit the model.
    """
    feeds = dict(map(_feed, inputs))
    if len(feeds) < len(inputs):
        raise ValueError(f"--input: {len(inputs)} arrays for {', '.join(feeds)}; every input takes one")
    with progress(f"loading {model.name}") as step:
        session = Session(model, device)
        step(f"running {model.name}")
        results = session(feeds)
    files = [None] * len(results) if output is None else [output / file for file in _file_names(results)]
    for file, value in zip(files, results.values(), strict=True):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, value)
    if as_json:
        print_json({"outputs": [_facts(*item) for item in zip(results, results.values(), files, strict=True)]})
        return
    table = Table("output", "dtype", "shape", "min", "mean", "max")
    for name, value in results.items():
        numbers = [f"{number:.6g}" for number in _summary(value)] or [""] * 3
        table.add_row(name, value.dtype.name, str(value.shape), *numbers)
    out.print(table)
    if output is not None:
        out.print(f"saved {counted(len(results), 'file')} in {output}", markup=False, soft_wrap=True)


def _facts(name: str, value: Array, file: Path | None) -> dict[str, Any]:
    numbers = dict(zip(("min", "mean", "max"), _summary(value), strict=False))
    return {"name": name, "dtype": value.dtype.name, "shape": value.shape, "file": file and str(file)} | numbers


def _feed(text: str) -> tuple[str, Array]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ValueError(f"--input {text}: expected NAME=FILE.npy")
    try:
        # A memory map is checked against the size of the file, whatever the header claims, and holds no pickles.
        return name, np.asarray(np.lib.format.open_memmap(file, mode="r"))
    except ValueError as error:
        raise ValueError(f"--input {text}: no .npy file of numbers: {error}") from error


def _summary(value: Array) -> list[float]:
    """Smallest, mean and largest number; nothing where there is none."""
    if value.size == 0 or value.dtype.kind not in "biuf":
        return []
    wide = value.astype(np.float64)
    return [float(wide.min()), float(wide.mean()), float(wide.max())]


def _file_names(names: Iterable[str]) -> list[str]:
    """The model's author chose the names: nothing in them may lead out of the folder, and no two may meet."""
    files: list[str] = []
    for name in names:
        stem = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "output"
        files.append(f"{stem}.npy" if f"{stem}.npy" not in files else f"{stem}_{len(files)}.npy")
    return files
