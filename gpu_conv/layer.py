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
        self._plans: dict[tuple[Any, ...], _Plan] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Array, *, residual: Array | None = None, out: Array | None = None) -> Array:
        """The result as :func:`gpu_conv.conv` gives it, written into ``out`` if given."""
        plan = self._plan(x, residual, out)
        result = plan.result(x, out)
        plan.run(plan.operands(x, residual, result))
        return result

    def bind(self, x: Array, *, residual: Array | None = None, out: Array | None = None) -> Callable[[], Array]:
        """The call with its arrays fixed: every ``bound()`` reads what is in ``x`` by then, and returns the same array.

        For programs that keep their arrays: on NumPy it saves 30 to 60 us per call. One thread at a time may use it.
        """
        plan = self._plan(x, residual, out)
        result = plan.result(x, out)
        bound = execute.bind(plan.run, plan.operands(x, residual, result))

        def run() -> Array:
            bound()
            return result

        return run

    def _plan(self, x: Array, residual: Array | None, out: Array | None) -> _Plan:
        key = (_key(x), residual is not None and _key(residual), out is not None and _key(out))
        plan = self._plans.get(key)
        if plan is None:
            call = prepare(x, self.w, self.bias, residual=residual, out=out, **self.options)
            plan = _Plan(call, execute.device_of(call.library, self._device), self._kernel)
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


class _Plan:
    """How one kind of arrays is convolved. Keeps nothing of the arrays but the filter and the bias."""

    def __init__(self, call: Call, device: str, kernel: str | None) -> None:
        self._shape, self._dtype = call.result.shape, call.result.dtype
        self._empty = np.empty if call.library == "numpy" else type(call.result)
        self.run: execute.Run = execute.prepare(call, device, kernel) if call.problem.y.size else lambda operands: None
        self._fixed = {name: call.operands[name] for name in ("w", "bias", "x_zero_point", "w_zero_point")}
        self._x_view, self._y_view = call.x_view, call.y_view

    def result(self, x: Array, out: Array | None) -> Array:
        """The array to write."""
        if out is None:
            return self._empty(self._shape, self._dtype)
        if overlap(out, x) or overlap(out, self._fixed["w"]):
            raise ValueError("out must not share memory with x or w")
        return out

    def operands(self, x: Array, residual: Array | None, result: Array) -> dict[str, Any]:
        """The arrays in canonical axis order, by name."""
        seen = None if residual is None else self._y_view(residual)
        return {**self._fixed, "x": self._x_view(x), "y": self._y_view(result), "residual": seen}
