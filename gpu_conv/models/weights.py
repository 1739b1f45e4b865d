"""Read the tensors of a PyTorch ``.pth`` file with NumPy alone, safely.

A ``.pth`` file is a pickle, and unpickling can run any code. This reader never unpickles: it walks the opcodes and
interprets the few that a dictionary of tensors needs. Names are compared with a list and never imported, nothing is
called, and every size is checked against the bytes that the file has before memory is reserved for it.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .opcodes import Storage, Tensor, WeightsError, interpret, require

__all__ = ["MAX_BYTES", "WeightsError", "read"]

Array = np.ndarray[Any, Any]

MAX_BYTES = 1 << 30  # of the file, and of all tensors together: strides of zero and shared storages can multiply them

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a file written before PyTorch 1.6

# What zipfile raises for a damaged archive, seen by feeding it mutated ones.
_ZIP_ERRORS = (zipfile.BadZipFile, struct.error, ValueError, RuntimeError, OverflowError, EOFError, OSError)


def read(source: str | Path | bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Array]:
    """The tensors of a state dictionary saved by ``torch.save``, old format or zip, in the file's order.

    Args:
        source: path of the file, or its bytes.
        max_bytes: limit for the file, and for all tensors together.

    Raises:
        WeightsError: a damaged or hostile file, or one that holds anything but a dictionary from names to tensors.
    """
    if isinstance(source, bytes):
        data = source
    else:
        size = Path(source).stat().st_size
        require(size <= max_bytes, f"the file has {size} bytes, the limit is {max_bytes}")
        data = Path(source).read_bytes()
    require(len(data) <= max_bytes, f"the file has {len(data)} bytes, the limit is {max_bytes}")
    tensors, storages = _read_zip(data) if data[:2] == b"PK" else _read_legacy(data)

    total = 0
    for name, tensor in tensors.items():
        _check_bounds(name, tensor)
        # An empty tensor counts what its other axes would need: NumPy refuses to multiply them beyond 2^63.
        total += math.prod(max(n, 1) for n in tensor.size) * tensor.storage.dtype.itemsize
        require(total <= max_bytes, f"the tensors up to {name!r} need {total} bytes, the limit is {max_bytes}")
    return {name: _materialise(tensor, storages(tensor.storage)) for name, tensor in tensors.items()}


# ---------------------------------------------------------------------------------------------------- the two formats


def _read_zip(data: bytes) -> tuple[dict[str, Tensor], Callable[[Storage], bytes]]:
    """PyTorch 1.6 and later: ``<root>/data.pkl`` and one uncompressed member ``<root>/data/<key>`` for each storage."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except _ZIP_ERRORS as error:
        raise WeightsError(f"not a readable zip file: {error}") from error
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl")]
    require(len(pickles) == 1, f"expected one data.pkl in the archive, found {len(pickles)}")
    root = pickles[0].removesuffix("data.pkl")

    def member(name: str) -> bytes:
        info = members.get(name)
        if info is None:
            raise WeightsError(f"the archive has no member {name!r}")
        require(info.compress_type == zipfile.ZIP_STORED, f"member {name!r} is compressed; torch.save never does that")
        require(info.file_size <= len(data), f"member {name!r} claims {info.file_size} bytes, more than the file")
        try:
            return archive.read(info)
        except _ZIP_ERRORS as error:
            raise WeightsError(f"member {name!r} cannot be read: {error}") from error

    if root + "byteorder" in members:
        require(member(root + "byteorder") == b"little", "only little-endian files are read")
    stream = io.BytesIO(member(pickles[0]))
    tensors = _as_tensors(interpret(stream))

    def storage_bytes(storage: Storage) -> bytes:
        raw = member(f"{root}data/{storage.key}")
        want = storage.elements * storage.dtype.itemsize
        require(len(raw) == want, f"storage {storage.key!r} has {len(raw)} bytes, {want} are announced")
        return raw

    return tensors, storage_bytes


def _read_legacy(data: bytes) -> tuple[dict[str, Tensor], Callable[[Storage], bytes]]:
    """Before PyTorch 1.6: magic, protocol, system, object and keys as five pickles, then each key's count and bytes."""
    stream = io.BytesIO(data)
    require(interpret(stream) == _MAGIC, "no PyTorch file: the magic number is missing")
    require(interpret(stream) == _PROTOCOL, f"unknown protocol version, only {_PROTOCOL} is read")
    system = interpret(stream)
    require(isinstance(system, dict) and system.get("little_endian") is True, "only little-endian files are read")
    tensors = _as_tensors(interpret(stream))
    keys = interpret(stream)

    storages: dict[str, Storage] = {}
    for tensor in tensors.values():
        known = storages.setdefault(tensor.storage.key, tensor.storage)
        require(known == tensor.storage, f"storage {known.key!r} is announced with two sizes or types")
    require(isinstance(keys, list) and all(isinstance(key, str) for key in keys), "the list of storages is damaged")
    require(len(keys) == len(set(keys)) and set(keys) == storages.keys(), "the list of storages does not fit")

    view = memoryview(data)
    position = stream.tell()
    raw: dict[str, bytes] = {}
    for key in keys:
        require(position + 8 <= len(data), f"the file ends before storage {key!r}")
        count = int.from_bytes(view[position : position + 8], "little", signed=True)
        announced = storages[key].elements
        require(count == announced, f"storage {key!r} has {count} elements, {announced} are announced")
        start = position + 8
        position = start + count * storages[key].dtype.itemsize
        require(position <= len(data), f"the file ends inside storage {key!r}")
        raw[key] = bytes(view[start:position])
    require(position == len(data), f"{len(data) - position} bytes follow the last storage")
    return tensors, lambda storage: raw[storage.key]


# ------------------------------------------------------------------------------------------------------------ tensors


def _as_tensors(value: object) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise WeightsError(f"expected a dictionary of tensors, found {type(value).__name__}")
    for name, entry in value.items():
        require(isinstance(name, str), "expected a dictionary of tensors, found a key that is no string")
        require(isinstance(entry, Tensor), f"entry {name!r} is {type(entry).__name__}, not a tensor")
    return value


def _check_bounds(name: str, tensor: Tensor) -> None:
    if math.prod(tensor.size) == 0:
        last = tensor.offset - 1
    else:
        last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.size, tensor.stride, strict=True))
    require(
        last < tensor.storage.elements,
        f"tensor {name!r} (size {tensor.size}, stride {tensor.stride}, offset {tensor.offset}) reaches element {last} "
        f"of a storage of {tensor.storage.elements}",
    )


def _materialise(tensor: Tensor, raw: bytes) -> Array:
    elements = np.frombuffer(raw, tensor.storage.dtype)[tensor.offset :]
    strides = [s * elements.itemsize if n > 1 else 0 for n, s in zip(tensor.size, tensor.stride, strict=True)]
    array = np.lib.stride_tricks.as_strided(elements, tensor.size, strides, writeable=False)
    return array != 0 if tensor.storage.kind == "BoolStorage" else array.copy()
