"""What Web IDL does before the method steps: names, defaults and types of the options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import options as opt
from ..arrays import Array
from ..epilogue import Activation
from ..layout import spatial_axes

UNSIGNED_LONG = 2**32 - 1  # the range that [EnforceRange] enforces
AUTO_PADS = ("explicit", "same-upper", "same-lower")
OWN = ("device", "kernel", "precision", "out")  # options of this package, handed on as they are
SIDES = {"d": "Depth", "h": "Height", "w": "Width"}


class Operator:
    """One operator: its name, its layouts, its options.

    Attributes:
        rank: number of spatial axes.
        sides: "Height" and "Width", the words that the specification appends to sizes.
        input_layouts, filter_layouts: as the specification lists them, the default first.
        options: the names that it takes, in camelCase.
    """

    def __init__(self, name: str, rank: int, transposed: bool = False) -> None:
        self.name, self.rank, self.transposed = name, rank, transposed
        self.space = spatial_axes(rank)
        self.sides = tuple(SIDES[axis] for axis in self.space)
        self.input_layouts = ("nc" + self.space, "n" + self.space + "c")
        orders = ("io{}", "{}oi", "o{}i") if transposed else ("oi{}", "{}io", "o{}i", "i{}o")
        self.filter_layouts = tuple(order.format(self.space) for order in orders)
        current = ("padding", "strides", "dilations", "groups", "inputLayout", "filterLayout", "bias", "label")
        sizes = ("outputPadding", "outputSizes") if transposed else ()
        self.options = (*current, *sizes, "autoPad", "activation", "groupCount", *OWN)
        self.camel_case = {snake_case(name): name for name in self.options}

    def error(self, message: str, label: str = "") -> TypeError:
        return TypeError(f"{f'[{label}] ' if label else ''}{self.name}: {message}")


def snake_case(name: str) -> str:
    """``outputSizes`` -> ``output_sizes``."""
    return re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name)


@dataclass(frozen=True)
class Options:
    """The options of one call with their defaults; the lists may still have a wrong length."""

    label: str
    padding: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    input_layout: str
    filter_layout: str
    bias: Array | None
    output_padding: tuple[int, ...]
    output_sizes: tuple[int, ...] | None
    auto_pad: str
    activation: Activation | None
    own: dict[str, Any]


def convert(operator: Operator, options: Mapping[str, Any] | None, more: Mapping[str, Any]) -> Options:
    """The options of a call: ``options`` and the keyword arguments ``more``, in camelCase or snake_case."""
    given = _given(operator, options, more)
    label = _Dictionary(operator, given, "").string("label", "")
    read = _Dictionary(operator, given, label)
    rank = operator.rank
    return Options(
        label=label,
        padding=read.sequence("padding", (0, 0) * rank),
        strides=read.sequence("strides", (1,) * rank),
        dilations=read.sequence("dilations", (1,) * rank),
        groups=read.unsigned("groups", given.get("groups", 1)),
        input_layout=read.string("inputLayout", operator.input_layouts[0], operator.input_layouts),
        filter_layout=read.string("filterLayout", operator.filter_layouts[0], operator.filter_layouts),
        bias=given.get("bias"),
        output_padding=read.sequence("outputPadding", (0,) * rank),
        output_sizes=read.sequence("outputSizes", ()) if "outputSizes" in given else None,
        auto_pad=read.string("autoPad", "explicit", AUTO_PADS),
        activation=read.activation(),
        own={name: given[name] for name in OWN if name in given},
    )


def _given(operator: Operator, options: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None, by their camelCase names."""
    if options is not None and not isinstance(options, Mapping):
        raise operator.error(f"options must be a mapping of names to values, got {options!r}")
    found: dict[str, Any] = {}
    for name, value in [*(options or {}).items(), *more.items()]:
        known = operator.camel_case.get(name, name)
        if known not in operator.options:
            raise operator.error(f"unknown option {name!r}; known are {', '.join(operator.options)}")
        key = "groups" if known == "groupCount" else known
        if key in found:
            raise operator.error(f"the option {key} is given twice, the second time as {name!r}")
        if value is not None:
            found[key] = value
    return found


@dataclass(frozen=True)
class _Dictionary:
    """Reads the members of an options dictionary by their types."""

    operator: Operator
    given: dict[str, Any]
    label: str

    def string(self, name: str, default: str, known: tuple[str, ...] | None = None) -> str:
        """A string, or one value of an enumeration."""
        value = self.given.get(name, default)
        if not isinstance(value, str):
            raise self._error(f"{name} must be a string, got {value!r}")
        if known is not None and value not in known:
            raise self._error(f"{name} must be one of {', '.join(known)}, got {value!r}")
        return value

    def unsigned(self, name: str, value: Any) -> int:
        """[EnforceRange] unsigned long; Python's floats are refused, not truncated."""
        try:
            number = opt.integer(name, value)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number <= UNSIGNED_LONG:
            raise self._error(f"{name} must be an unsigned long, 0 to {UNSIGNED_LONG}, got {value!r}")
        return number

    def sequence(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A sequence of unsigned long."""
        if name not in self.given:
            return default
        value = self.given[name]
        if isinstance(value, (str, bytes, Mapping, set)) or not hasattr(value, "__len__"):
            raise self._error(f"{name} must be a sequence of unsigned long, got {value!r}")
        return tuple(self.unsigned(f"{name}[{i}]", item) for i, item in enumerate(value))

    def activation(self) -> Activation | None:
        """A name of WebNN ("hardSwish", ("clamp", lo, hi)) or of this package."""
        value = self.given.get("activation")
        name, *parameters = value if isinstance(value, (tuple, list)) and value else (value,)
        if isinstance(name, str):
            value = ("clip" if name == "clamp" else snake_case(name), *parameters)
        try:
            return Activation.parse(value)
        except (TypeError, ValueError) as error:
            raise self._error(str(error)) from None

    def _error(self, message: str) -> TypeError:
        return self.operator.error(message, self.label)
