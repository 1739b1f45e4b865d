"""What is being convolved: one frozen, hashable, printable object, and the only output-size formula.

Every operator of the package is reduced to one grouped convolution over strided tensors with an explicit group axis:

    y[n, g, o, *q] = act( bias[g, o] + residual[n, g, o, *q] + sum over c, *k of
                          x[n, g, c, *((q * stride + k * dilation - lo) / input_dilation)] * w[g, o, c, *k] )

where a position of x that is not an integer or lies outside contributes nothing. Layouts, flipped filters, transposed
convolutions, batch groups and the five-axis filter are only strides of these tensors (see ``arguments.py``), so a
kernel that takes strides takes all of them without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from .epilogue import Activation
from .layout import contiguous_strides

ITEMSIZE = {
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
REQUANTIZATION = "requantization"  # in the place of the bias: records of gpu_conv/requantize.py, of 16 bytes


def output_size(size: int, k: int, stride: int, lo: int, hi: int, dilation: int, input_dilation: int = 1) -> int:
    """Length of one output axis; 0 where the dilated filter does not fit (StableHLO's formula).

    The input is dilated first, then padded (or cropped, where ``lo`` or ``hi`` is negative).
    """
    dilated = (size - 1) * input_dilation + 1 if size else 0
    padded = lo + dilated + hi
    window = (k - 1) * dilation + 1
    return 0 if padded <= 0 or window > padded else (padded - window) // stride + 1


@dataclass(frozen=True)
class Tensor:
    """What a kernel must know of an array.

    Attributes:
        dtype: name of the element type.
        shape: in canonical axis order (see the module's docstring).
        strides: in elements; negative and zero strides are allowed.
        align: largest power of two, at most 16, that divides the address of the first element.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    align: int = 16

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * ITEMSIZE[self.dtype]

    def is_dense(self, order: tuple[int, ...]) -> bool:
        """Whether the axes, slowest first in ``order``, lie in memory without gaps (axes of length 1 are free)."""
        wanted = contiguous_strides(tuple(self.shape[a] for a in order))
        return all(self.shape[a] <= 1 or self.strides[a] == s for a, s in zip(order, wanted, strict=True))

    @cached_property
    def channels_last(self) -> bool:
        """Dense ``n *spatial g c``: nhwc and its siblings."""
        return self.is_dense((0, *range(3, len(self.shape)), 1, 2))

    @cached_property
    def channels_first(self) -> bool:
        """Dense ``n g c *spatial``: nchw and its siblings."""
        return self.is_dense(tuple(range(len(self.shape))))


@dataclass(frozen=True)
class ConvProblem:
    """One convolution, validated. Built by ``arguments.prepare`` only.

    Attributes:
        x: input, axes ``n g c *spatial``.
        w: filter, axes ``g o c *filter``.
        y: output, axes ``n g o *spatial``.
        strides, dilations, input_dilations: one integer >= 1 per spatial axis.
        padding: one pair ``(lo, hi)`` per spatial axis; negative crops.
        accumulate: dtype of the sum: float32, float64, int32, int64, complex64 or complex128.
        bias: dtype of the bias ``[g * o]`` (contiguous), REQUANTIZATION where such records take its place, or None.
        residual: tensor with the shape of y, or None.
        activation: applied after bias and residual, or None.
        x_zero_point: whether one int32 is subtracted from x; padding contributes zero after the subtraction.
        w_zero_point: whether int32 ``[g * o]`` (contiguous) is subtracted from w.
        precision: "ieee", or "tf32" where float32 products may be rounded to TF32 operands.
    """

    x: Tensor
    w: Tensor
    y: Tensor
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]
    input_dilations: tuple[int, ...]
    accumulate: str
    bias: str | None = None
    residual: Tensor | None = None
    activation: Activation | None = None
    x_zero_point: bool = False
    w_zero_point: bool = False
    precision: str = "ieee"

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, f) for f in self.__dataclass_fields__))

    def __hash__(self) -> int:  # a key of the plan cache: computed once
        return self._hash

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.strides)

    @property
    def batch(self) -> int:
        return self.x.shape[0]

    @property
    def groups(self) -> int:
        return self.x.shape[1]

    @property
    def in_per_group(self) -> int:
        return self.x.shape[2]

    @property
    def out_per_group(self) -> int:
        return self.w.shape[1]

    @property
    def in_channels(self) -> int:
        return self.groups * self.in_per_group

    @property
    def out_channels(self) -> int:
        return self.groups * self.out_per_group

    @property
    def in_spatial(self) -> tuple[int, ...]:
        return self.x.shape[3:]

    @property
    def filter(self) -> tuple[int, ...]:
        return self.w.shape[3:]

    @property
    def out_spatial(self) -> tuple[int, ...]:
        return self.y.shape[3:]

    @property
    def taps(self) -> int:
        """Products in one output: input channels per group times filter elements."""
        return self.in_per_group * prod(self.filter)

    @property
    def is_depthwise(self) -> bool:
        """One input channel per group, more than one group."""
        return self.in_per_group == 1 and self.groups > 1

    @property
    def is_pointwise(self) -> bool:
        """A 1x1 filter on unpadded, undilated input: a matrix product over the (possibly strided) pixels."""
        return (
            all(k == 1 for k in self.filter)
            and not any(lo or hi for lo, hi in self.padding)
            and all(d == 1 for d in self.input_dilations)
        )

    @property
    def requantizes(self) -> bool:
        """Whether integer sums are scaled and rounded to 8 bits before they are stored."""
        return self.bias == REQUANTIZATION

    @property
    def flops(self) -> int:
        """Two per product; taps in the padding and between dilated input elements are counted as if computed."""
        return 2 * self.y.size * self.taps // prod(self.input_dilations)

    @cached_property
    def bytes(self) -> int:
        """The fewest bytes that device memory must move: touched input, filter, bias and residual once, output once."""
        total = _touched(self) * ITEMSIZE[self.x.dtype] + self.w.nbytes + self.y.nbytes
        if self.bias:
            total += self.out_channels * (16 if self.requantizes else ITEMSIZE[self.bias])
        return total + (self.residual.nbytes if self.residual else 0)

    def __str__(self) -> str:
        def axes(sizes: tuple[int, ...]) -> str:
            return "x".join(map(str, sizes)) or "scalar"

        text = (
            f"{self.batch} x {self.in_channels} -> {self.out_channels} channels, {axes(self.in_spatial)} -> "
            f"{axes(self.out_spatial)}, filter {axes(self.filter)}, {self.x.dtype} -> {self.y.dtype}"
        )
        for name, value, default in (
            ("groups", self.groups, 1),
            ("strides", self.strides, (1,) * self.rank),
            ("padding", self.padding, ((0, 0),) * self.rank),
            ("dilations", self.dilations, (1,) * self.rank),
            ("input_dilations", self.input_dilations, (1,) * self.rank),
        ):
            text += f", {name} {value}" if value != default else ""
        return text


def _touched(p: ConvProblem) -> int:
    """Input elements that at least one output reads: a strided 1x1 skips pixels."""
    axes = zip(p.in_spatial, p.filter, p.strides, p.dilations, p.input_dilations, strict=True)
    skipped = [k == 1 and s > 1 and ld == 1 for _, k, s, _, ld in axes]
    pixels = prod(min(n, out) if skip else n for n, out, skip in zip(p.in_spatial, p.out_spatial, skipped, strict=True))
    return p.batch * p.in_channels * pixels
