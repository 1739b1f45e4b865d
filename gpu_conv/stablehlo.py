"""StableHLO's convolution attributes, as ``lax`` takes them -> options of :func:`gpu_conv.conv`.

Every constraint of the specification that a call can break is an error here, in the words of the specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import adapters
from .arrays import Array, library
from .borrow import Lent, borrow
from .dtypes import kind
from .layout import spatial_axes
from .options import integer

_PADDINGS = {"VALID": "valid", "SAME": "same_upper", "SAME_LOWER": "same_lower"}
# What JAX lets the GPU round to TF32, and what it does not.
_PRECISIONS = {
    **dict.fromkeys(("highest", "float32"), "ieee"),
    **dict.fromkeys(("high", "bfloat16_3x", "tensorfloat32", "default", "bfloat16", "fastest"), "tf32"),
}


class ConvDimensionNumbers(NamedTuple):
    """Which dimension is which, as in JAX.

    Attributes:
        lhs_spec: positions of batch, feature and spatial dimensions in lhs.
        rhs_spec: positions of output feature, input feature and spatial dimensions in rhs.
        out_spec: positions of batch, feature and spatial dimensions in the result.
    """

    lhs_spec: Sequence[int]
    rhs_spec: Sequence[int]
    out_spec: Sequence[int]


def borrowed(lhs: Array, rhs: Array, preferred_element_type: Any) -> Lent:
    """The operands of a call as :func:`gpu_conv.conv` names them: "x", "w" and "out_dtype"."""
    for name, array in (("lhs", lhs), ("rhs", rhs)):
        if adapters.find(array) is None:
            library(array, name)
    return borrow({"x": lhs, "w": rhs, "out_dtype": preferred_element_type})


@dataclass(frozen=True)
class Operands:
    """The shapes of lhs and rhs, and which of their dimensions is which."""

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    dimensions: ConvDimensionNumbers

    @classmethod
    def of(cls, lhs: Array, rhs: Array, dimension_numbers: Any) -> Operands:
        """Of two arrays; TypeError where ranks, element types or dimension numbers do not go together."""
        shapes = tuple(lhs.shape), tuple(rhs.shape)
        if len(shapes[0]) != len(shapes[1]):
            raise TypeError(f"lhs and rhs must have one rank, got lhs {shapes[0]} and rhs {shapes[1]}")
        if len(shapes[0]) < 2:
            raise TypeError(f"lhs needs a batch and a feature dimension, got lhs {shapes[0]}")
        if lhs.dtype != rhs.dtype:
            raise TypeError(f"lhs and rhs must have one element type, got lhs {lhs.dtype} and rhs {rhs.dtype}")
        return cls(*shapes, _dimension_numbers(dimension_numbers, len(shapes[0])))

    @property
    def rank(self) -> int:
        """Spatial dimensions."""
        return len(self.lhs) - 2

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(self.rhs[a] for a in self.dimensions.rhs_spec[2:])

    def __str__(self) -> str:
        return f"got lhs {self.lhs}, rhs {self.rhs} and {self.dimensions}"

    def check_features(self, feature_group_count: Any, batch_group_count: Any) -> None:
        """Everything that StableHLO demands of groups and kernel."""
        groups = integer("feature_group_count", feature_group_count, 1)
        batches = integer("batch_group_count", batch_group_count, 1)
        if groups > 1 and batches > 1:
            raise ValueError(f"feature_group_count={groups} or batch_group_count={batches} must be 1")
        batch, features = (self.lhs[a] for a in self.dimensions.lhs_spec[:2])
        outputs, inputs = (self.rhs[a] for a in self.dimensions.rhs_spec[:2])
        for count, name, size, dimension in (
            (groups, "feature_group_count", features, "input_feature_dimension of lhs"),
            (groups, "feature_group_count", outputs, "kernel_output_feature_dimension of rhs"),
            (batches, "batch_group_count", batch, "input_batch_dimension of lhs"),
            (batches, "batch_group_count", outputs, "kernel_output_feature_dimension of rhs"),
        ):
            if size % count:
                raise ValueError(f"{name}={count} must divide the {dimension}, {size}; {self}")
        if inputs * groups != features:
            raise ValueError(
                f"the kernel_input_feature_dimension of rhs, {inputs}, must be the input_feature_dimension of lhs, "
                f"{features}, / feature_group_count={groups}; {self}"
            )
        if 0 in self.window:
            raise ValueError(f"the kernel_spatial_dimensions of rhs must be at least 1, they are {self.window}; {self}")

    def check_padding(self, padding: str | Sequence[tuple[int, int]], lhs_dilation: Sequence[int]) -> None:
        """Names are for lhs as it is; negative padding must not remove more than there is."""
        if isinstance(padding, str):
            if any(step != 1 for step in lhs_dilation):
                raise ValueError(
                    f"padding must be (low, high) pairs where lhs_dilation={lhs_dilation}; conv_transpose knows names"
                )
            return
        for axis, (low, high), step in zip(self.dimensions.lhs_spec[2:], padding, lhs_dilation, strict=True):
            dilated = (self.lhs[axis] - 1) * step + 1 if self.lhs[axis] else 0
            if low + dilated + high < 0:
                raise ValueError(
                    f"padding=({low}, {high}) crops more than the {dilated} elements of dimension {axis} of the "
                    f"dilated lhs; {self}"
                )

    def reversed(self, rhs: Array, window_reversal: Any) -> Array:
        """A view of rhs, reversed along the given spatial dimensions."""
        if window_reversal is None:
            return rhs
        flags = list(_sequence("window_reversal", window_reversal, self.rank, "booleans"))
        if not all(isinstance(flag, (bool, np.bool_)) for flag in flags):
            raise TypeError(f"window_reversal must be booleans, got {window_reversal!r}")
        turned = {axis for axis, flag in zip(self.dimensions.rhs_spec[2:], flags, strict=True) if flag}
        return rhs[tuple(slice(None, None, -1 if axis in turned else None) for axis in range(rhs.ndim))]


def _sequence(name: str, value: Any, rank: int, what: str) -> Any:
    if isinstance(value, str) or not hasattr(value, "__len__"):
        raise TypeError(f"{name} must be a sequence of {rank} {what}, got {value!r}")
    if len(value) != rank:
        raise ValueError(f"{name} must have one entry per spatial dimension: {rank}, got {len(value)}: {value!r}")
    return value


def positive(name: str, value: Any, rank: int, default: int | None = None) -> tuple[int, ...]:
    """One integer of at least 1 per spatial dimension; None where there is a default."""
    if value is None and default is not None:
        return (default,) * rank
    return tuple(integer(f"{name}[{i}]", v, 1) for i, v in enumerate(_sequence(name, value, rank, "integers")))


def paddings(value: Any, rank: int) -> Any:
    """As :func:`gpu_conv.conv` takes it: a name or one pair per spatial dimension."""
    if isinstance(value, str):
        if value.upper() not in _PADDINGS:
            raise ValueError(f"padding={value!r} is unknown; known are {', '.join(_PADDINGS)} and (low, high) pairs")
        return _PADDINGS[value.upper()]
    pairs = _sequence("padding", value, rank, "(low, high) pairs")
    if not all(hasattr(pair, "__len__") and len(pair) == 2 for pair in pairs):
        raise ValueError(f"padding must be a string or {rank} (low, high) pairs, got {value!r}")
    return tuple((integer(f"padding[{i}][0]", a), integer(f"padding[{i}][1]", b)) for i, (a, b) in enumerate(pairs))


def precision_name(value: Any) -> str:
    """JAX's precision as :func:`gpu_conv.conv` takes it: of a pair the more exact one."""
    if value is None:
        return "ieee"
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    names = [str(getattr(p, "name", p)).lower() for p in pair]
    if len(names) != 2 or not all(name in _PRECISIONS for name in names):
        known = ", ".join(map(repr, _PRECISIONS))
        raise ValueError(
            f"precision must be None, a jax.lax.Precision, one of {known}, or a pair of them; got {value!r}"
        )
    return "ieee" if "ieee" in (_PRECISIONS[name] for name in names) else "tf32"


def element_type(lhs: Array, preferred: Any) -> str:
    """Name of the result's element type."""
    given = str(lhs.dtype.name)
    if preferred is None:
        return given
    wanted = np.dtype(preferred)
    unsigned = lhs.dtype.kind == "i" and wanted.kind == "u"
    if kind(wanted.name) != kind(given) or wanted.itemsize < lhs.dtype.itemsize or unsigned:
        raise TypeError(
            f"preferred_element_type={wanted.name} does not fit {given} operands: it must be of their kind and "
            "signedness, and no narrower"
        )
    return str(wanted.name)


def layout(spec: Sequence[int], features: str) -> str:
    """Dimension numbers as a layout: position ``spec[i]`` is called by the i-th letter."""
    names = dict(zip(spec, features + spatial_axes(len(spec) - 2), strict=True))
    return "".join(names[i] for i in range(len(spec)))


def _dimension_numbers(value: Any, rank: int) -> ConvDimensionNumbers:
    if value is None:
        return ConvDimensionNumbers(*[tuple(range(rank))] * 3)
    if isinstance(value, str):
        value = _labels(value)
    elif hasattr(value, "lhs_spec"):
        value = (value.lhs_spec, value.rhs_spec, value.out_spec)
    if not isinstance(value, (tuple, list)) or len(value) != 3 or not all(hasattr(spec, "__len__") for spec in value):
        raise TypeError(f"dimension_numbers must be None or name lhs, rhs and result, got {value!r}")
    if all(isinstance(spec, str) for spec in value):
        value = _positions(value, rank)
    specs = tuple(tuple(integer("dimension_numbers", i) for i in spec) for spec in value)
    for name, spec in zip(ConvDimensionNumbers._fields, specs, strict=True):
        if sorted(spec) != list(range(rank)):
            raise TypeError(
                f"dimension_numbers: {name}={spec} must name each of the {rank} dimensions of lhs and rhs once"
            )
    return ConvDimensionNumbers(*specs)


def _labels(text: str) -> list[str]:
    """XLA's dim_labels, ``b01f_01io->b01f``, as JAX's strings."""
    specs = text.replace("->", "_").split("_")
    return [spec.translate(str.maketrans("bfio", "NCIO")) for spec in specs]


def _positions(specs: Sequence[str], rank: int) -> list[tuple[int, ...]]:
    """Strings of dimension names as positions; the spatial ones in the order of rhs."""
    order = [name for name in specs[1] if name not in "OI"]
    for spec, features in zip(specs, ("NC", "OI", "NC"), strict=True):
        if len(spec) != rank or sorted(spec) != sorted([*features, *order]):
            raise TypeError(
                f"dimension_numbers {tuple(specs)}: {spec!r} must name {rank} dimensions, {features[0]}, {features[1]} "
                "and the spatial ones of rhs, each once"
            )
    return [
        tuple(spec.index(name) for name in [*features, *order])
        for spec, features in zip(specs, ("NC", "OI", "NC"), strict=True)
    ]
