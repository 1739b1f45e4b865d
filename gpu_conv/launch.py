"""A kernel launch as pure data: what to compile, on which grid, with which arguments. No array library here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, prod

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


# Bytes of the elements that a tensor map can describe.
MAPPED = {"uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "int32": 4, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class TensorMap:
    """What a tensor map describes to the copy engine of sm_90: boxes of an array, zero outside of it.

    A box of shape ``box`` steps over ``element_strides`` elements, so it fetches ``ceil(box / element_strides)`` of
    them along each axis, densely, the innermost axis first.

    Attributes:
        operand: which of ``POINTERS`` it reads; not the workspace, which has no address before the launch.
        dtype: of the elements, one of ``MAPPED``.
        offset: of element 0 from the operand's pointer, in elements.
        shape: 1 to 5 axes, the innermost first.
        strides: in elements, of every axis but the innermost, whose elements are neighbours.
        box: elements that a box spans along each axis, at most 256. A kernel may ask for it at any corner that is a
            multiple of 16 bytes along the innermost axis, and store one at no negative corner and where rows are
            multiples of 16 bytes; all else is illegal or writes behind the rows, and the emulator finds it.
        element_strides: 1 to 8 per axis, 1 of the innermost.
        swizzle: bytes of the pattern in which 16-byte pieces are exchanged in shared memory: 0, 32, 64 or 128.

    Raises:
        ValueError: the driver's ``cuTensorMapEncodeTiled`` would refuse it; the message names the rule.
    """

    operand: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    swizzle: int

    def __post_init__(self) -> None:
        if broken := self._broken_rule():
            raise ValueError(f"tensor map of {self.operand}: {broken}; got {self}")

    def _broken_rule(self) -> str | None:
        rank = len(self.shape)
        if self.operand not in POINTERS[:-1] or self.dtype not in MAPPED:
            return f"the operand is one of {', '.join(POINTERS[:-1])}, the dtype one of {', '.join(MAPPED)}"
        if not 1 <= rank <= 5:
            return "there are 1 to 5 axes"
        if (len(self.strides), len(self.box), len(self.element_strides)) != (rank - 1, rank, rank):
            return f"{rank} axes have {rank - 1} strides (none for the innermost), {rank} sizes of a box, {rank} steps"
        size = MAPPED[self.dtype]
        if self.offset < 0 or self.offset * size % 16:
            return "the first element lies a multiple of 16 bytes behind the pointer"
        if not all(1 <= n <= 2**32 for n in self.shape):
            return "every axis has 1 to 2**32 elements"
        if not all(0 < s * size < 2**40 and s * size % 16 == 0 for s in self.strides):
            return "strides are multiples of 16 bytes, more than 0 and less than 2**40"
        if not all(1 <= n <= 256 for n in self.box) or self.box[0] * size % 16:
            return "a box spans 1 to 256 elements of each axis, and a multiple of 16 bytes of the innermost"
        if self.element_strides[0] != 1 or not all(1 <= n <= 8 for n in self.element_strides):
            return "a box takes every element of the innermost axis, and one of 1 to 8 of the others"
        if self.swizzle not in (0, 32, 64, 128) or (self.swizzle and self.box[0] * size > self.swizzle):
            return "a swizzle has 32, 64 or 128 bytes, 0 is none, and the innermost side of a box fits in it"
        return None

    @property
    def fetched(self) -> tuple[int, ...]:
        """Elements of one box in shared memory along each axis, those outside of the array included."""
        return tuple(ceil(n / step) for n, step in zip(self.box, self.element_strides, strict=True))

    @property
    def box_bytes(self) -> int:
        """Shared memory of one box: what its copy reports as arrived."""
        return prod(self.fetched) * MAPPED[self.dtype]


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
        workspace_bytes: scratch memory.
        ticket_bytes: of its beginning: zero before the launch, and zero again after it.
        tensor_maps: one ``const __grid_constant__`` parameter of 128 bytes, aligned to 64, each, after the struct.
    """

    source: str
    kernel: str
    template: tuple[str | int, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    params: bytes = field(repr=False)
    shared_bytes: int = 0
    workspace_bytes: int = 0
    ticket_bytes: int = 0
    tensor_maps: tuple[TensorMap, ...] = ()

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
