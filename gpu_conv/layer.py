"""``Conv``: a convolution whose filter is packed once and whose plan is remembered per input shape."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import execute
from .arguments import Call, prepare
from .arrays import Array, address, overlap

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .ops import ConvOptions

_LIMIT = 64  # plans kept per layer: more input shapes than that and the oldest is planned again


class Conv:
    """A convolution layer for inference: ``y = layer(x)``.

    Args:
        w, bias: as in :func:`gpu_conv.conv`. The arrays must not change afterwards: packed copies may be in use.
        **options: every option of :func:`gpu_conv.conv` except ``residual`` and ``out``, which belong to a call.

    Example:
        >>> import numpy as np, gpu_conv
        >>> layer = gpu_conv.Conv(np.ones((2, 1, 3, 3), np.float32), groups=2, padding=1, activation="relu")
        >>> layer(np.ones((1, 2, 5, 5), np.float32)).shape
        (1, 2, 5, 5)
    """

    def __init__(self, w: Array, bias: Array | None = None, **options: Unpack[ConvOptions]) -> None:
        for name in ("residual", "out"):
            if name in options:
                raise TypeError(f"{name} belongs to a call of the layer: layer(x, {name}=...)")
        self.w, self.bias = w, bias
        self.options: dict[str, Any] = dict(options)
        self._device = self.options.pop("device", None)
        self._kernel = self.options.pop("kernel", None)
        self._plans: dict[tuple[Any, ...], Callable[..., Array]] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Array, *, residual: Array | None = None, out: Array | None = None) -> Array:
        """The result as :func:`gpu_conv.conv` gives it, written into ``out`` if given."""
        key = (_key(x), residual is not None and _key(residual), out is not None and _key(out))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plan(key, x, residual, out)
        return plan(x, residual, out)

    def _plan(self, key: tuple[Any, ...], x: Array, residual: Array | None, out: Array | None) -> Callable[..., Array]:
        call = prepare(x, self.w, self.bias, residual=residual, out=out, **self.options)
        plan = _planned(call, execute.device_of(call.library, self._device), self._kernel)
        with self._lock:
            while len(self._plans) >= _LIMIT:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = plan
        return plan


def _key(array: Any) -> tuple[Any, ...]:
    """All that a plan depends on; a foreign type has its own key and fails in ``prepare`` with the right message."""
    if not hasattr(array, "strides"):
        return (type(array),)
    return (type(array), array.shape, array.strides, array.dtype, address(array) & 15)


def _planned(call: Call, device: str, kernel: str | None) -> Callable[..., Array]:
    shape, dtype = call.result.shape, call.result.dtype
    empty = np.empty if call.library == "numpy" else type(call.result)
    run = execute.prepare(call, device, kernel) if call.problem.y.size else lambda operands: None
    fixed = {name: call.operands[name] for name in ("w", "bias", "x_zero_point", "w_zero_point")}
    x_view, y_view, w = call.x_view, call.y_view, call.operands["w"]

    def plan(x: Array, residual: Array | None, out: Array | None) -> Array:
        if out is None:
            result = empty(shape, dtype)
        elif overlap(out, x) or overlap(out, w):
            raise ValueError("out must not share memory with x or w")
        else:
            result = out
        seen = None if residual is None else y_view(residual)
        run({**fixed, "x": x_view(x), "y": y_view(result), "residual": seen})
        return result

    return plan
