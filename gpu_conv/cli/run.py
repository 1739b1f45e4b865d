"""``gpu-conv run``: an ONNX model on .npy files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from .output import out, progress
from .session import Array, Session


def run(model: Path, inputs: Sequence[str], output: Path | None, device: str) -> None:
    """Print a table of the outputs, and save them below ``output`` if it is given.

    Raises:
        ValueError: an input that is not NAME=FILE.npy, or no array, or does not fit the model.
    """
    feeds = dict(_feed(text) for text in inputs)
    with progress(f"loading {model.name}") as step:
        session = Session(model, device)
        step(f"running {model.name}")
        results = session(feeds)
    table = Table("output", "dtype", "shape", "min", "mean", "max")
    for name, value in results.items():
        table.add_row(name, value.dtype.name, str(value.shape), *_summary(value))
    out.print(table)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for file, value in zip(_file_names(results), results.values(), strict=True):
            np.save(output / file, value)
        out.print(f"saved {len(results)} files in {output}", markup=False, soft_wrap=True)


def _feed(text: str) -> tuple[str, Array]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ValueError(f"--input {text}: expected NAME=FILE.npy")
    try:
        # A memory map is checked against the size of the file, whatever the header claims, and holds no pickles.
        return name, np.asarray(np.lib.format.open_memmap(file, mode="r"))
    except ValueError as error:
        raise ValueError(f"--input {text}: no .npy file of numbers: {error}") from error


def _summary(value: Array) -> list[str]:
    if value.size == 0 or value.dtype.kind not in "biuf":
        return ["", "", ""]
    wide = value.astype(np.float64)
    return [f"{number:.6g}" for number in (wide.min(), wide.mean(), wide.max())]


def _file_names(names: Iterable[str]) -> list[str]:
    """The model's author chose the names: nothing in them may lead out of the folder, and no two may meet."""
    files: list[str] = []
    for name in names:
        stem = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "output"
        files.append(f"{stem}.npy" if f"{stem}.npy" not in files else f"{stem}_{len(files)}.npy")
    return files
