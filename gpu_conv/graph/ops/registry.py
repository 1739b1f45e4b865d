"""The table of operators: what runs a node, and what the executor must know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from types import ModuleType
from typing import Any, Literal

import numpy as np

from ..errors import ModelError
from ..ir import Array, Host, Node
from ..limits import MAX_ELEMENTS, TooLarge, max_elements

# How a node takes its arrays (see ``graph/layout.py``):
# - "last":    the operands in ``Op.data`` channels last, and so its result;
# - "aligned": all operands in one layout, channels last if any of them is, and so its result;
# - "first":   as ONNX has them, and so its results;
# - "any":     as they come (``Call.last`` tells); results as ONNX has them.
Layout = Literal["last", "aligned", "first", "any"]

MAX_MEMO = 64  # things that a node keeps: layers and tables for that many input shapes


@dataclass
class Call:
    """One node as it is about to run.

    Attributes:
        xp: namespace of the arrays: numpy or cupy.
        device: where convolutions are computed; None follows the arrays.
        last: whether the operands (the result) are channels last: axis 1 of ONNX is the last axis in memory.
        out: array for the result, if the operator takes one (``Op.out``), or None.
        padded: whether a convolution's input already lies in zeros as wide as its padding, and those are part of it.
        constant_filter: whether a convolution's filter and bias are the same in every run.
        branches: for a control operator: attribute -> function from all captured values to results.
        memo: what the node keeps from run to run; see ``remember``.
        fixed: whether all operands and the result are the same arrays in every run, only their contents differ.
        bound: what an operator keeps where they are.
        kernel: what computed the node, where that was found out by running it; see ``Op.kernel``.
    """

    node: Node
    xp: ModuleType = np
    device: str | None = None
    last: bool = False
    out: Array | None = None
    padded: bool = False
    constant_filter: bool = False
    branches: dict[str, Callable[..., Any]] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)
    fixed: bool = False
    bound: Any = None
    kernel: str | None = None

    def __post_init__(self) -> None:
        self.attrs = self.node.attrs
        self.version = self.node.version

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()`` of the first call with this key; the oldest of too many keys is made again."""
        value = self.memo.get(key)
        if value is None:
            while len(self.memo) >= MAX_MEMO:
                del self.memo[next(iter(self.memo))]
            value = self.memo[key] = make()
        return value

    def axis(self, axis: int, rank: int) -> int:
        """Position in memory of an ONNX axis, which may be negative."""
        return physical(check_axis(axis, rank), rank, self.last)

    def axes(self, axes: Any, rank: int) -> tuple[int, ...]:
        return tuple(self.axis(int(a), rank) for a in axes)


def check_axis(axis: int, rank: int) -> int:
    """The non-negative spelling of an axis."""
    if not -rank <= axis < max(rank, 1):
        raise ModelError(f"axis {axis} is out of range for {rank} axes")
    return axis % rank if rank else 0


def physical(axis: int, rank: int, last: bool) -> int:
    """Position in memory of the ONNX axis ``axis``: axis 1 goes to the end if channels are last."""
    if not last or axis == 0:
        return axis
    return rank - 1 if axis == 1 else axis - 1


def host(array: Array) -> Host:
    """A small array as NumPy, wherever it lies."""
    return np.asarray(array.get() if hasattr(array, "get") else array)


def ints(array: Array) -> list[int]:
    """A small integer array as a list."""
    return [int(v) for v in host(array).ravel()]


def check_size(shape: Any) -> tuple[int, ...]:
    """A shape computed from numbers in the file, refused if it is absurd."""
    sizes = tuple(int(n) for n in shape)
    if any(n < 0 for n in sizes) or prod(sizes) > MAX_ELEMENTS:
        raise ModelError(f"result of shape {sizes}: sizes must be >= 0, with at most {MAX_ELEMENTS} elements")
    if prod(sizes) > max_elements():
        raise TooLarge(f"result of shape {sizes}: more than {max_elements()} elements")
    return sizes


@dataclass(frozen=True)
class Op:
    """A row of the table.

    Attributes:
        run: ``run(call, *operands)``; an absent operand is None; several results come as a tuple.
        layout: see ``Layout``; a function of the node where it depends on attributes.
        data: for layout "last": the operands that are laid out.
        host: operands that are read on the host and may decide the result's shape.
        views: whether a result may share memory with an operand.
        out: whether ``Call.out`` is honoured.
        shape_only: whether the result depends on the operands' shapes alone.
        data_dependent: whether the result's shape depends on values.
        kernel: ``kernel(call, *operands)`` names what computes the node, for the profile; None: the array library.
        pays: for a node that stands for several: ``pays(call, *operands)`` says whether it is better than they are.
    """

    run: Callable[..., Any]
    layout: Callable[[Node], Layout]
    data: frozenset[int]
    host: frozenset[int]
    views: bool
    out: bool
    shape_only: bool
    data_dependent: bool
    kernel: Callable[..., str] | None
    pays: Callable[..., bool] | None = None


OPS: dict[str, Op] = {}


def op(
    *names: str,
    layout: Layout | Callable[[Node], Layout] = "first",
    data: tuple[int, ...] = (0,),
    host: tuple[int, ...] = (),
    views: bool = False,
    out: bool = False,
    shape_only: bool = False,
    data_dependent: bool = False,
    kernel: Callable[..., str] | None = None,
    pays: Callable[..., bool] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the implementation of the named operators."""
    choose: Callable[[Node], Layout] = layout if callable(layout) else lambda _: layout

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        row = Op(run, choose, frozenset(data), frozenset(host), views, out, shape_only, data_dependent, kernel, pays)
        OPS.update(dict.fromkeys(names, row))
        return run

    return register
