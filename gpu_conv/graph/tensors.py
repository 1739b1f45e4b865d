"""ONNX tensors to NumPy arrays: sizes are checked before anything is read or allocated."""

from __future__ import annotations

from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from .errors import ModelError, ModelTypeError
from .ir import Host
from .limits import Budget

DTYPES: dict[int, np.dtype[np.generic]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.UINT16: np.dtype(np.uint16),
    TensorProto.INT16: np.dtype(np.int16),
    TensorProto.INT32: np.dtype(np.int32),
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.BOOL: np.dtype(np.bool_),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.UINT32: np.dtype(np.uint32),
    TensorProto.UINT64: np.dtype(np.uint64),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}

# The typed field that holds a tensor's values when raw_data does not, and how many of its entries make one element.
_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}


def dtype_of(code: int, where: str) -> np.dtype[np.generic]:
    """The NumPy dtype of an ONNX element type."""
    if code not in DTYPES:
        name = next((k for k, v in TensorProto.DataType.items() if v == code), str(code))
        raise ModelTypeError(f"{where}: element type {name} is not supported")
    return DTYPES[code]


def to_array(tensor: onnx.TensorProto, folder: Path | None, budget: Budget, where: str) -> Host:
    """The tensor as an array.

    Args:
        folder: of the model file; external data must lie below it. None: the model did not come from a file.
        budget: what the tensor's bytes are taken from.
        where: how messages name the tensor.
    """
    dtype = dtype_of(tensor.data_type, where)
    shape = tuple(tensor.dims)
    if any(n < 0 for n in shape):
        raise ModelError(f"{where}: negative size in shape {shape}")
    count = prod(shape)
    # An empty tensor counts what its other axes would need: NumPy refuses to multiply them beyond 2^63.
    budget.tensor(prod(max(n, 1) for n in shape) * dtype.itemsize, where)
    if tensor.HasField("segment"):
        raise ModelError(f"{where}: segmented tensors are not supported")
    if tensor.data_location == TensorProto.EXTERNAL:
        if not budget.limits.external_data:
            raise ModelError(f"{where}: its data is in a file of its own, which Limits(external_data=False) refuses")
        return np.frombuffer(_external(tensor, count * dtype.itemsize, folder, where), dtype).reshape(shape)
    raw = tensor.raw_data if tensor.HasField("raw_data") else None  # protobuf copies it at every look
    if raw is not None:
        given, needed, unit = len(raw), count * dtype.itemsize, "bytes"
    else:
        field = _FIELDS.get(tensor.data_type, "int32_data")
        given, needed, unit = len(getattr(tensor, field)), count, "values"
    if given != needed:
        raise ModelError(f"{where}: shape {shape} of {dtype.name} needs {needed} {unit}, the file holds {given}")
    if raw is not None:
        return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)
    return np.asarray(numpy_helper.to_array(tensor), dtype).reshape(shape)


def _external(tensor: onnx.TensorProto, nbytes: int, folder: Path | None, where: str) -> bytes:
    """The bytes of a tensor that lie in a file of their own, below the model's folder."""
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ModelError(f"{where}: its data is in the file {location!r}; load the model from its path to read it")
    if not location:
        raise ModelError(f"{where}: external data without a location")
    root = folder.resolve()
    try:
        path = (root / location).resolve()
        inside = path.is_relative_to(root) and path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{where}: external data {location!r} cannot be opened: {error}") from error
    if not path.is_relative_to(root):
        raise ModelError(f"{where}: external data {location!r} lies outside the model's folder")
    if not inside:
        raise ModelError(f"{where}: external data {location!r} is not a file in the model's folder")
    try:
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries.get("length", str(nbytes)) or nbytes)
    except ValueError as error:
        raise ModelError(f"{where}: external data offset and length must be integers: {entries}") from error
    size = path.stat().st_size
    if length != nbytes or offset < 0 or offset + length > size:
        raise ModelError(
            f"{where}: needs {nbytes} bytes; external data {location!r} of {size} bytes offers {length} at {offset}"
        )
    with path.open("rb") as file:
        file.seek(offset)
        data: bytes = file.read(nbytes)
    if len(data) != nbytes:
        raise ModelError(f"{where}: external data {location!r} ended early")
    return data
