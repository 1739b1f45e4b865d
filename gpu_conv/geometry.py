"""Spatial options of an operator -> strides, padding, dilations and output size, one entry per axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import options as opt
from .problem import output_size


@dataclass(frozen=True)
class Geometry:
    """The spatial options of one call, normalised to one entry per axis."""

    strides: tuple[int, ...]
    padding: opt.Pairs
    dilations: tuple[int, ...]
    input_dilations: tuple[int, ...]
    out_spatial: tuple[int, ...]


@dataclass(frozen=True)
class Spatial:
    """Sizes of input and filter along the spatial axes; ``context`` says what was passed, for errors."""

    sizes: tuple[int, ...]
    filter: tuple[int, ...]
    context: str

    def forward(self, strides: Any, padding: Any, dilations: Any, input_dilations: Any) -> Geometry:
        """The geometry of a convolution."""
        rank = len(self.sizes)
        s, d = opt.per_axis("strides", strides, rank), opt.per_axis("dilations", dilations, rank)
        ld = opt.per_axis("input_dilations", input_dilations, rank)
        pads = opt.padding(padding, rank)
        if isinstance(pads, str):
            dilated = [(n - 1) * step + 1 if n else 0 for n, step in zip(self.sizes, ld, strict=True)]
            pads = tuple(opt.same_padding(pads, *axis) for axis in zip(dilated, self.filter, s, d, strict=True))
        return self._geometry(s, pads, d, ld)

    def transposed(
        self, strides: Any, padding: Any, dilations: Any, output_padding: Any, output_sizes: Any
    ) -> Geometry:
        """The geometry of a transposed convolution, seen as a convolution of the dilated input, flipped filter."""
        rank = len(self.sizes)
        s, d = opt.per_axis("strides", strides, rank), opt.per_axis("dilations", dilations, rank)
        reach = [(k - 1) * dd for k, dd in zip(self.filter, d, strict=True)]
        full = [(n - 1) * ss + r + 1 for n, ss, r in zip(self.sizes, s, reach, strict=True)]
        extra = _output_padding(output_padding, s, d)
        pads = opt.padding(padding, rank)
        if isinstance(pads, str):
            axes = zip(full, extra, self.sizes, s, strict=True)
            pads = tuple(_same_transposed(pads, f + e, n * ss) for f, e, n, ss in axes)
        if output_sizes is not None:
            least = tuple(f - lo - hi for f, (lo, hi) in zip(full, pads, strict=True))
            extra = self._output_sizes(output_sizes, least, s, extra)
        inner = tuple((r - lo, r - hi + e) for r, (lo, hi), e in zip(reach, pads, extra, strict=True))
        geometry = self._geometry((1,) * rank, inner, d, s)
        if not all(geometry.out_spatial):
            raise ValueError(
                f"the output would have the spatial size {geometry.out_spatial}: padding {pads} removes all of it; "
                f"{self.context}"
            )
        return geometry

    def _geometry(
        self,
        strides: tuple[int, ...],
        padding: opt.Pairs,
        dilations: tuple[int, ...],
        input_dilations: tuple[int, ...],
    ) -> Geometry:
        axes = zip(self.sizes, self.filter, strides, padding, dilations, input_dilations, strict=True)
        out = tuple(output_size(n, k, s, lo, hi, d, ld) for n, k, s, (lo, hi), d, ld in axes)
        return Geometry(strides, padding, dilations, input_dilations, out)

    def _output_sizes(
        self, output_sizes: Any, least: tuple[int, ...], strides: tuple[int, ...], extra: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The output padding that gives the wanted sizes."""
        wanted = opt.per_axis("output_sizes", output_sizes, len(self.sizes))
        if any(extra):
            raise ValueError(f"give output_sizes={wanted} or output_padding={extra}, not both")
        limits = tuple((low, low + s - 1) for low, s in zip(least, strides, strict=True))
        if not all(low <= size <= high for size, (low, high) in zip(wanted, limits, strict=True)):
            raise ValueError(
                f"output_sizes={wanted} must lie within (smallest, largest) = {limits} per axis; {self.context}"
            )
        return tuple(size - low for size, low in zip(wanted, least, strict=True))


def _output_padding(value: Any, strides: tuple[int, ...], dilations: tuple[int, ...]) -> tuple[int, ...]:
    extra = opt.per_axis("output_padding", value, len(strides), minimum=0)
    for axis, (e, s, d) in enumerate(zip(extra, strides, dilations, strict=True)):
        if e >= max(s, d):
            raise ValueError(
                f"output_padding[{axis}]={e} must be smaller than strides[{axis}]={s} or dilations[{axis}]={d}"
            )
    return extra


def _same_transposed(name: str, full: int, wanted: int) -> tuple[int, int]:
    """ONNX: output ``size * stride``; where that is more than the whole, the missing elements are added at the end."""
    if name == "valid":
        return (0, 0)
    return opt.split_total(full - wanted, name) if full >= wanted else (0, full - wanted)
