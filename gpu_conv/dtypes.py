"""Which element types go together, and in which one a sum is accumulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Array, dtype_name, name_of
from .problem import ITEMSIZE
from .requantize import default_dtype

FLOATS = ("float16", "bfloat16", "float32", "float64")
QUANTISED = ("int8", "uint8")
PRECISIONS = ("ieee", "tf32")


@dataclass(frozen=True)
class Dtypes:
    """Element types of one call: of the input, of the result, of the sum."""

    x: str
    out: str
    accumulate: str


def resolve(x: Array, w: Array, out_dtype: Any, out: Array | None, precision: Any, requantize: Any = None) -> Dtypes:
    """The dtypes of a call; TypeError where they do not go together."""
    xd, wd = dtype_name(x, "x"), dtype_name(w, "w")
    if xd != wd and not (xd in QUANTISED and wd in QUANTISED):
        raise TypeError(f"x and w must have one dtype (int8 and uint8 may mix), got x {xd} and w {wd}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if out_dtype is not None:
        try:
            od = name_of(np.dtype(out_dtype))
        except TypeError:
            raise TypeError(f"out_dtype={out_dtype!r} is not a dtype") from None
    else:
        default = default_dtype(requantize, xd) if requantize is not None else "int32" if xd in QUANTISED else xd
        od = name_of(out.dtype) if out is not None else default
    if requantize is not None and not {xd, od} <= set(QUANTISED):
        raise TypeError(f"requantize takes int8 and uint8 to int8 or uint8, got {xd} to {od}")
    wanted = kind(xd)
    if od not in ITEMSIZE or kind(od) != wanted:
        raise TypeError(f"a convolution of {xd} cannot give {od}: out_dtype must be a {wanted} dtype")
    if wanted == "floating":
        return Dtypes(xd, od, "float64" if "float64" in (xd, od) else "float32")
    if wanted == "complex":
        return Dtypes(xd, od, "complex128" if "complex128" in (xd, od) else "complex64")
    return Dtypes(xd, od, "int32" if xd in QUANTISED and ITEMSIZE[od] <= 4 else "int64")


def kind(dtype: str) -> str:
    """One of "floating", "integer", "complex", "boolean"."""
    if dtype in FLOATS:
        return "floating"
    return "complex" if dtype.startswith("complex") else "boolean" if dtype == "bool" else "integer"
