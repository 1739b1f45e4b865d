"""``Conv``: a convolution whose filter is packed once and whose plan is remembered per input shape."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import execute
from .arguments import Call, prepare
from .arrays import Array, address, overlap
from .borrow import Lent, borrow, untraced

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

    @untraced
    def __call__(self, x: Array, *, residual: Array | None = None, out: Array | None = None) -> Array:
        """The result as :func:`gpu_conv.conv` gives it, written into ``out`` if given."""
        with borrow({"x": x, "residual": residual, "out": out}) as lent:
            plan = self._plan(lent)
            operands, result = plan.operands(lent)
            plan.run(operands)
            return lent.give(result)

    def bind(self, x: Array, *, residual: Array | None = None, out: Array | None = None) -> Callable[[], Array]:
        """The call with its arrays fixed: every ``bound()`` reads what is in ``x`` by then, and returns the same array.

        For programs that keep their arrays: on NumPy it saves 30 to 60 us per call. One thread at a time may use it.

        Raises:
            TypeError: arrays that are not NumPy's, CuPy's or PyTorch's.
        """
        with borrow({"x": x, "residual": residual, "out": out}) as lent:
            if not lent.bindable:
                raise TypeError(f"bind keeps NumPy, CuPy and PyTorch arrays; {lent.kind} arrays go in with every call")
            plan = self._plan(lent)
            operands, result = plan.operands(lent)
            bound, given = execute.bind(plan.run, operands), lent.give(result)

        def run() -> Array:
            with lent.place():
                bound()
            return given

        return run

    def _plan(self, lent: Lent) -> _Plan:
        x, residual, out = (lent.arguments[name] for name in ("x", "residual", "out"))
        where = execute.device_of(lent.library, self._device)
        key = (lent.kind, where, *(None if a is None else _key(a) for a in (x, residual, out)))
        plan = self._plans.get(key)
        if plan is None:
            with borrow({**lent.original, "w": self.w, "bias": self.bias, **self.options}) as whole:
                plan = _Plan(prepare(**whole.arguments, empty=lent.empty), where, self._kernel)
            with self._lock:
                while len(self._plans) >= _LIMIT:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = plan
        return plan


def _key(array: Array) -> tuple[Any, ...]:
    """All that a plan depends on."""
    return (array.shape, array.strides, array.dtype, address(array) & 15)


class _Plan:
    """How one kind of arrays is convolved. Keeps nothing of the arrays but the filter and the bias."""

    def __init__(self, call: Call, device: execute.Device, kernel: str | None) -> None:
        self._shape, self._dtype = call.result.shape, call.result.dtype
        self._empty = np.empty if call.library == "numpy" else type(call.result)
        self.run: execute.Run = execute.prepare(call, device, kernel) if call.problem.y.size else lambda operands: None
        self._fixed = {name: call.operands[name] for name in ("w", "bias", "x_zero_point", "w_zero_point")}
        self._x_view, self._y_view = call.x_view, call.y_view

    def operands(self, lent: Lent) -> tuple[dict[str, Any], Array]:
        """The arrays in canonical axis order, by name, and the array to write."""
        x, residual, out = (lent.arguments[name] for name in ("x", "residual", "out"))
        if out is None:
            out = (lent.empty or self._empty)(self._shape, self._dtype)
        elif overlap(out, x) or overlap(out, self._fixed["w"]):
            raise ValueError("out must not share memory with x or w")
        seen = None if residual is None else self._y_view(residual)
        return {**self._fixed, "x": self._x_view(x), "y": self._y_view(out), "residual": seen}, out
