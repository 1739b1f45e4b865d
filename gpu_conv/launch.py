"""A kernel launch as pure data: what to compile, on which grid, with which arguments. No array library here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

# How the kernels spell a dtype (kernels/numeric.cuh declares the two 16-bit types without any CUDA header).
CTYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "uint8": "uint8",
    "int32": "int32",
}

# The order of the pointer parameters of every kernel; an absent operand is a null pointer.
POINTERS = ("x", "w", "bias", "residual", "x_zero_point", "w_zero_point", "y", "workspace")


def struct(name: str, fields: Iterable[tuple[str, str] | tuple[str, str, int]]) -> np.dtype[np.void]:
    """The NumPy image of a C++ params struct; ``tests/test_params.py`` compares it with the header.

    fields: (name, scalar dtype[, array length]) in the order of the header.
    """
    rows = [(f[0], f[1], (f[2],)) if len(f) == 3 else (f[0], f[1]) for f in fields]
    return np.dtype(rows, align=True, metadata={"name": name})


def pack(dtype: np.dtype[np.void], **values: object) -> bytes:
    """One struct as the bytes that a kernel receives by value. Every field must be named."""
    if values.keys() != set(dtype.names or ()):
        raise ValueError(f"fields {sorted(values)} do not fill {sorted(dtype.names or ())}")
    record = np.zeros((), dtype)
    for name, value in values.items():
        record[name] = value
    return record.tobytes()


@dataclass(frozen=True)
class Launch:
    """One kernel launch. A device (``cuda.device`` or ``emulator``) turns it into work on arrays.

    Attributes:
        source: file below ``kernels/``, for example ``"direct.cu"``.
        kernel: the ``__global__`` template in it.
        template: its template arguments, in order.
        grid, block: sizes in x, y, z.
        params: the struct passed by value after the pointers, packed by :func:`pack`.
        shared_bytes: dynamic shared memory per block.
        workspace_bytes: scratch memory, zeroed before the launch.
    """

    source: str
    kernel: str
    template: tuple[str | int, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    params: bytes = field(repr=False)
    shared_bytes: int = 0
    workspace_bytes: int = 0

    @property
    def name_expression(self) -> str:
        """The C++ instantiation, spelled in exactly one way: it is part of the cache key."""
        arguments = ", ".join(str(int(a)) if isinstance(a, bool) else str(a) for a in self.template)
        return f"{self.kernel}<{arguments}>"

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]


@dataclass(frozen=True)
class Target:
    """The GPU that a launch is planned for: what tile choices and the floor time depend on.

    Attributes:
        arch: as NVRTC spells it, ``"sm_90a"``.
        multiprocessors: streaming multiprocessors.
        shared_per_block: opt-in limit of shared memory of one block, bytes.
        bandwidth: device copy bandwidth, bytes read plus written per second; 0 if unknown.
        name: as the driver reports it, or a name that says that nothing was measured.
    """

    arch: str
    multiprocessors: int
    shared_per_block: int
    bandwidth: float = 0.0
    name: str = "unknown GPU"

    @property
    def capability(self) -> int:
        """Compute capability as one number: ``90`` for ``sm_90a``."""
        return int(self.arch.removeprefix("sm_").rstrip("af"))
