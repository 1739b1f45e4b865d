"""Options of the operators as users write them -> one integer (or pair) per spatial axis."""

from __future__ import annotations

from operator import index
from typing import Any

LIMIT = 2**63 - 1  # sizes and offsets are 64-bit in kernels and in NumPy
STRING_PADDINGS = ("valid", "same_upper", "same_lower")

Pairs = tuple[tuple[int, int], ...]


def integer(name: str, value: Any, minimum: int | None = None) -> int:
    """An integer option; bool, float and NaN are TypeErrors, too small ones ValueErrors."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    if abs(number) > LIMIT:
        raise ValueError(f"{name} must fit in 64 bits, got {number}")
    return number


def _items(name: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, dict, set)) or not hasattr(value, "__len__"):
        raise TypeError(f"{name} must be an integer or a sequence of integers, got {value!r}")
    return list(value)


def per_axis(name: str, value: Any, rank: int, minimum: int = 1) -> tuple[int, ...]:
    """One integer for all axes, or one per axis."""
    if not hasattr(value, "__len__"):
        return (integer(name, value, minimum),) * rank
    items = _items(name, value)
    if len(items) != rank:
        raise ValueError(f"{name} needs one value per spatial axis: {rank}, got {len(items)}: {value!r}")
    return tuple(integer(f"{name}[{i}]", v, minimum) for i, v in enumerate(items))


def padding(value: Any, rank: int) -> Pairs | str:
    """An integer, one integer per axis, one ``(lo, hi)`` pair per axis, or a name; negative values crop."""
    if isinstance(value, str):
        if value not in STRING_PADDINGS:
            raise ValueError(f"padding={value!r} is unknown; known are {', '.join(STRING_PADDINGS)}")
        return value
    if not hasattr(value, "__len__"):
        amount = integer("padding", value)
        return ((amount, amount),) * rank
    items = _items("padding", value)
    if len(items) != rank:
        raise ValueError(f"padding needs one value or one (lo, hi) pair per spatial axis: {rank}, got {value!r}")
    return tuple(_pair(f"padding[{i}]", v) for i, v in enumerate(items))


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not hasattr(value, "__len__"):
        return (integer(name, value), integer(name, value))
    items = _items(name, value)
    if len(items) != 2:
        raise ValueError(f"{name} must be one integer or a (lo, hi) pair, got {value!r}")
    return (integer(f"{name}[0]", items[0]), integer(f"{name}[1]", items[1]))


def split_total(total: int, name: str) -> tuple[int, int]:
    """Divide a total padding between the two sides: ``same_upper`` gives the odd element to the right."""
    small = total // 2
    return (small, total - small) if name == "same_upper" else (total - small, small)


def same_padding(name: str, size: int, k: int, stride: int, dilation: int) -> tuple[int, int]:
    """Padding of one axis of a forward convolution: output ``ceil(size / stride)``, with the dilated filter."""
    if name == "valid":
        return (0, 0)
    out = -(-size // stride)
    return split_total(max(0, (out - 1) * stride + (k - 1) * dilation + 1 - size), name)
