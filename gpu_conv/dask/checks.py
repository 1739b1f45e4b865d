"""What is known of a dask array without computing any of it."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from ..arrays import Array, library


def check(array: Any, name: str) -> str:
    """The library of a dask array's chunks, "numpy" or "cupy".

    Raises:
        TypeError: no dask array, or one of other chunks.
        ValueError: its shape is not known.
    """
    if not isinstance(array, da.Array):
        raise TypeError(f"{name} must be a dask array, got {type(array).__name__}; dask.array.from_array makes one")
    if np.isnan(array.shape).any():
        raise ValueError(f"{name} has chunks of unknown size, {array.chunks}; {name}.compute_chunk_sizes() finds them")
    return library(array._meta, f"a chunk of {name}")


def stand_in(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array without memory, on which the rules for shapes and types can be checked."""
    return np.broadcast_to(np.zeros((), dtype), shape)
