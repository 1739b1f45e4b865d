"""The layers of real models (``layers.json``, the core rows) as problems to plan, with no memory for their arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") a name)
import numpy as np

from gpu_conv import arguments
from gpu_conv.bench.gpu import ENOUGH_BYTES
from gpu_conv.bench.peers import from_row
from gpu_conv.problem import ConvProblem, Tensor

LAYERS = json.loads((Path(__file__).parent / "layers.json").read_text())
FLOATS = ("float32", "float16", "bfloat16")
BOTH = (False, True)  # channels last or not

Layer = Mapping[str, Any]  # a row of ``layers.json``


def problem(row: Layer, dtype: str, last: bool, batch: int = 1, **options: Any) -> ConvProblem:
    """A row as a problem; ``options`` are those of ``arguments.prepare``, and ``bias``: its dtype.

    The arrays are those of one image and never touched, so the system gives them no memory.
    """
    axes, depth = "dhw"[3 - len(row["filter"]) :], row["C"] // row["groups"]
    x = (1, *row["in_spatial"], row["C"]) if last else (1, row["C"], *row["in_spatial"])
    w = (row["K"], *row["filter"], depth) if last else (row["K"], depth, *row["filter"])
    bias = np.empty(row["K"], options.pop("bias", "int32" if dtype in ("int8", "uint8") else "float32"))
    options |= {
        "strides": row["stride"],
        "padding": tuple((p, 0 if row["causal"] else p) for p in row["pad"]),
        "dilations": row["dilation"],
        "groups": row["groups"],
        "input_layout": f"n{axes}c" if last else f"nc{axes}",
        "filter_layout": f"o{axes}i" if last else f"oi{axes}",
    }
    options.setdefault("activation", next((e for e in row["epilogue"] if e != "add"), None))
    found = arguments.prepare(np.empty(x, dtype), np.empty(w, dtype), bias, **options).problem
    x, y = (_images(tensor, batch) for tensor in (found.x, found.y))
    return replace(found, x=x, y=y, residual=y if "add" in row["epilogue"] else None)


def _images(tensor: Tensor, batch: int) -> Tensor:
    """A dense tensor of more images."""
    return replace(tensor, shape=(batch, *tensor.shape[1:]), strides=(prod(tensor.shape[1:]), *tensor.strides[1:]))


def measured_batch(row: Layer, dtype: str) -> int:
    """The batch at which ``bench.py`` measures: the smallest that moves 16 MB."""
    found = (batch for batch in row["batches"] if from_row(row, batch, dtype).nbytes >= ENOUGH_BYTES)
    return next(found, row["batches"][-1])


def measured(row: Layer, dtype: str, last: bool) -> ConvProblem:
    """A row as ``bench.py`` measures it: at that batch, with a bias of its dtype."""
    return problem(row, dtype, last, measured_batch(row, dtype), bias=dtype)


def title(row: Layer) -> str:
    """How results name a row."""
    return f"{row['model']} {row['layer']}"
