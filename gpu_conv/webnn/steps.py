"""The method steps of WebNN's convolutions: every condition in the specification's order, then the operator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import ops
from ..arrays import Array
from ..borrow import borrow, untraced
from .idl import Operator, Options, convert

LARGEST_DIMENSION = 2**31 - 1  # a "valid dimension" is positive and fits a signed long
DATA_TYPES = ("float32", "float16")


@untraced
def call(
    operator: Operator, input: Array, filter: Array, options: Mapping[str, Any] | None, more: Mapping[str, Any]
) -> Array:
    """Check everything, then compute."""
    o = convert(operator, options, more)
    steps = Steps(operator, o, *_operands(operator, o, input, filter))
    steps.types_and_ranks()
    steps.lists()
    steps.channels()
    steps.sizes()
    chosen = dict(o.own)
    if o.output_sizes is not None:
        chosen["output_sizes"] = o.output_sizes
    elif operator.transposed:
        chosen["output_padding"] = o.output_padding
    explicit = tuple(zip(o.padding[::2], o.padding[1::2], strict=True))
    return (ops.conv_transpose if operator.transposed else ops.conv)(
        input,
        filter,
        o.bias,
        strides=o.strides,
        padding=o.auto_pad.replace("-", "_") if steps.auto_pad else explicit,
        dilations=o.dilations,
        groups=o.groups,
        input_layout=o.input_layout,
        filter_layout=steps.filter_layout,
        activation=o.activation,
        **chosen,
    )


def _operands(operator: Operator, o: Options, input: Array, filter: Array) -> tuple[Array, Array, Array | None]:
    """input, filter and bias as NumPy or CuPy arrays, each such as an MLOperand can be."""
    operands = {"input": input, "filter": filter, "bias": o.bias}
    for name in ("input", "filter"):
        if operands[name] is None:
            raise operator.error(f"{name} must be an array, got None", o.label)
    try:
        with borrow({"x": input, "w": filter, "bias": o.bias}) as lent:
            views = dict(zip(operands, (lent.arguments[name] for name in ("x", "w", "bias")), strict=True))
    except (TypeError, ValueError) as error:
        words = re.sub(r"\b[xw]\b", lambda name: {"x": "input", "w": "filter"}[name[0]], str(error))
        raise operator.error(words, o.label) from None
    for name, view in views.items():
        if view is not None and not all(1 <= n <= LARGEST_DIMENSION for n in (*view.shape, view.size)):
            raise operator.error(
                f"{name}'s dimensions and their product must be 1 to {LARGEST_DIMENSION}, got {_tensor(view)}", o.label
            )
    return views["input"], views["filter"], views["bias"]


@dataclass(frozen=True)
class Steps:
    """The conditions of one call."""

    operator: Operator
    o: Options
    input: Array
    filter: Array
    bias: Array | None

    def types_and_ranks(self) -> None:
        """Data types and ranks of input and filter."""
        if self.operator.transposed:  # the two texts differ in the order of these two steps
            self._rank_of_input()
            self._data_type_of_input()
        else:
            self._data_type_of_input()
            self._rank_of_input()
        self._filter()

    def _data_type_of_input(self) -> None:
        if self.input.dtype.name not in DATA_TYPES:
            raise self._error(f"input's data type must be one of {', '.join(DATA_TYPES)}, got {_tensor(self.input)}")

    def _rank_of_input(self) -> None:
        rank, layouts = self.operator.rank + 2, self.operator.input_layouts
        if self.input.ndim != rank:
            raise self._error(f"input's rank must be {rank} ({', '.join(layouts)}), got {_tensor(self.input)}")

    def _filter(self) -> None:
        rank, layouts = self.operator.rank + 2, self.operator.filter_layouts
        if self.filter.ndim != rank and not (self.filter.ndim == rank + 1 and self.o.filter_layout == layouts[0]):
            raise self._error(f"filter's rank must be {rank} ({', '.join(layouts)}), got {_tensor(self.filter)}")
        if self.filter.dtype != self.input.dtype:
            raise self._error(f"filter's data type must be input's {self.input.dtype}, got {_tensor(self.filter)}")

    def lists(self) -> None:
        """Lengths and zeros of the lists."""
        o, sides = self.o, self.operator.sides
        self._length("padding", o.padding, [f"{end}{side}" for side in sides for end in ("beginning", "ending")])
        for name, values in (("strides", o.strides), ("dilations", o.dilations)):
            self._length(name, values, [f"{name[:-1]}{side}" for side in sides])
            if 0 in values:
                raise self._error(f"no item of {name} may be 0, got {list(values)}")
        self._length("outputPadding", o.output_padding, [f"outputPadding{side}" for side in sides])
        if o.output_sizes is not None:
            self._length("outputSizes", o.output_sizes, [f"output{side}" for side in sides])
        elif any(p >= s for p, s in zip(o.output_padding, o.strides, strict=True)):
            raise self._error(
                f"outputPadding {list(o.output_padding)} must be smaller than strides {list(o.strides)} on every axis"
            )
        if o.groups == 0:
            raise self._error("groups must not be 0")

    def _length(self, name: str, values: tuple[int, ...], words: list[str]) -> None:
        if len(values) != len(words):
            raise self._error(f"{name}'s size must be {len(words)}, [{', '.join(words)}], got {list(values)}")

    @property
    def filter_layout(self) -> str:
        """The filter's layout; the historical form with one more axis names its groups."""
        return "ogi" + self.operator.space if self.filter.ndim == self.operator.rank + 3 else self.o.filter_layout

    @property
    def auto_pad(self) -> bool:
        return self.o.auto_pad != "explicit"

    def _input_size(self, axis: str) -> int:
        return int(self.input.shape[self.o.input_layout.index(axis)])

    def _filter_size(self, axis: str) -> int:
        return int(self.filter.shape[self.filter_layout.index(axis)])

    def channels(self) -> None:
        """Channels, groups and bias."""
        groups, channels, i, o = self.o.groups, self._input_size("c"), self._filter_size("i"), self._filter_size("o")
        divides, grouped = channels % groups == 0, "g" in self.filter_layout
        if grouped and (self._filter_size("g") != groups or i * groups != channels):
            sides = ", ".join(side.lower() for side in self.operator.sides)
            raise self._mismatch(
                f"the grouped filter must be [outputChannels / groups, groups, inputChannels / groups, {sides}]"
            )
        if not grouped and self.operator.transposed and channels != i:
            raise self._mismatch(f"inputChannels {channels} must equal filterInputChannels {i}")
        if not grouped and not self.operator.transposed:
            if not divides:
                raise self._mismatch(f"inputChannels {channels} % groups {groups} must be 0")
            if channels // groups != i:
                raise self._mismatch(
                    f"inputChannels / groups = {channels // groups} must equal filterInputChannels {i}"
                )
            if o % groups:
                raise self._mismatch(f"outputChannels {o} % groups {groups} must be 0")
        output_channels = o * groups if grouped or self.operator.transposed else o
        if output_channels > LARGEST_DIMENSION:
            raise self._error(
                f"outputChannels must be a valid dimension, 1 to {LARGEST_DIMENSION}, got {output_channels} = "
                f"filterOutputChannels {o} * groups {groups}"
            )
        if not divides:  # convTranspose2d's steps lack this one; such groups have no meaning
            raise self._mismatch(f"inputChannels {channels} % groups {groups} must be 0")
        self._bias(output_channels)

    def _bias(self, output_channels: int) -> None:
        bias = self.bias
        if bias is None:
            return
        if tuple(bias.shape) != (output_channels,):
            raise self._error(f"bias's shape must be [outputChannels] = [{output_channels}], got {_tensor(bias)}")
        if bias.dtype != self.input.dtype:
            raise self._error(f"bias's data type must be input's {self.input.dtype}, got {_tensor(bias)}")

    def sizes(self) -> None:
        """The spatial sizes of the output."""
        for axis, side in enumerate(self.operator.sides):
            size = self._transposed_size(axis) if self.operator.transposed else self._forward_size(axis)
            if not 1 <= size <= LARGEST_DIMENSION:
                raise self._error(
                    f"output{side} must be a valid dimension, 1 to {LARGEST_DIMENSION}, got {size} = "
                    f"{self._formula(axis)}"
                )

    def _along(self, axis: int) -> tuple[int, int, int, int, int]:
        """inputSize, effectiveFilterSize, stride, beginningPadding and endingPadding of one axis."""
        name, o = self.operator.space[axis], self.o
        effective = (self._filter_size(name) - 1) * o.dilations[axis] + 1
        return self._input_size(name), effective, o.strides[axis], o.padding[2 * axis], o.padding[2 * axis + 1]

    def _forward_size(self, axis: int) -> int:
        size, effective, stride, begin, end = self._along(axis)
        return -(-size // stride) if self.auto_pad else (size - effective + begin + end) // stride + 1

    def _transposed_size(self, axis: int) -> int:
        size, effective, stride, begin, end = self._along(axis)
        least = size * stride if self.auto_pad else (size - 1) * stride + effective - begin - end
        if self.o.output_sizes is None:
            return least if self.auto_pad else least + self.o.output_padding[axis]
        wanted = self.o.output_sizes[axis]
        if not least <= wanted < least + stride:
            raise self._error(
                f"outputSizes[{axis}] must be at least {least} and less than {least + stride}, got {wanted}; {least} = "
                + self._formula(axis)
            )
        return wanted

    def _formula(self, axis: int) -> str:
        """How the size of one axis was calculated."""
        (size, effective, stride, begin, end), side = self._along(axis), self.operator.sides[axis]
        inputs, strides, filters = f"input{side} {size}", f"stride{side} {stride}", f"effectiveFilter{side} {effective}"
        if not self.operator.transposed:
            if self.auto_pad:
                return f"ceil({inputs} / {strides})"
            return f"floor(({inputs} - {filters} + beginningPadding {begin} + endingPadding {end}) / {strides}) + 1"
        if self.auto_pad:
            return f"{inputs} * {strides}"
        formula = f"({inputs} - 1) * {strides} + {filters} - beginningPadding {begin} - endingPadding {end}"
        return formula + (f" + outputPadding {self.o.output_padding[axis]}" if self.o.output_sizes is None else "")

    def _mismatch(self, rule: str) -> TypeError:
        return self._error(
            f"{rule}; got input {_tensor(self.input)} ({self.o.input_layout}), filter {_tensor(self.filter)} "
            f"({self.filter_layout}) and groups {self.o.groups}"
        )

    def _error(self, message: str) -> TypeError:
        return self.operator.error(message, self.o.label)


def _tensor(array: Array) -> str:
    """An operand as errors show it: ``float32[1, 3, 224, 224]``."""
    return f"{array.dtype}{list(array.shape)}"
