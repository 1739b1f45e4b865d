"""``Conv``: a convolution whose filter is packed once and whose plan is remembered per input shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import execute
from .arguments import prepare
from .arrays import Array
from .borrow import Lent, borrow, untraced
from .locks import new_lock
from .packing import Filters
from .plan import Plan, array_key, at_home

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
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._filters = Filters()
        self._lock = new_lock()

    @untraced
    def __call__(self, x: Array, *, residual: Array | None = None, out: Array | None = None) -> Array:
        """The result as :func:`gpu_conv.conv` gives it, written into ``out`` if given."""
        if kind := at_home(x, residual, out):
            plan = self._plans.get(_key(kind, execute.device_of(kind, self._device), x, residual, out))
            if plan is not None:
                return plan(x, residual, out)
        with borrow({"x": x, "residual": residual, "out": out}) as lent:
            plan = self._plan(lent)
            operands, result = plan.operands(*_arrays(lent), empty=lent.empty)
            plan.run(operands)
            return lent.give(result)

    def bind(self, x: Array, *, residual: Array | None = None, out: Array | None = None) -> Callable[[], Array]:
        """The call with its arrays fixed: every ``bound()`` reads what is in ``x`` by then, and returns the same array.

        For programs that keep their arrays: on NumPy it saves 30 to 60 us per call. One thread and one stream at a time
        may use it.

        Raises:
            TypeError: arrays that are not NumPy's, CuPy's or PyTorch's.
        """
        with borrow({"x": x, "residual": residual, "out": out}) as lent:
            if not lent.bindable:
                raise TypeError(f"bind keeps NumPy, CuPy and PyTorch arrays; {lent.kind} arrays go in with every call")
            plan = self._plan(lent)
            operands, result = plan.operands(*_arrays(lent), empty=lent.empty)
            bound, given = execute.bind(plan.run, operands), lent.give(result)

        def run() -> Array:
            with lent.place():
                bound()
            return given

        return run

    def _plan(self, lent: Lent) -> Plan:
        where = execute.device_of(lent.library, self._device)
        key = _key(lent.kind, where, *_arrays(lent))
        plan = self._plans.get(key)
        if plan is None:
            with borrow({**lent.original, "w": self.w, "bias": self.bias, **self.options}) as whole:
                plan = Plan(prepare(**whole.arguments, empty=lent.empty), where, self._kernel, self._filters)
            with self._lock:
                while len(self._plans) >= _LIMIT:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = plan
        return plan


def _arrays(lent: Lent) -> tuple[Array, Array | None, Array | None]:
    return lent.arguments["x"], lent.arguments["residual"], lent.arguments["out"]


def _key(kind: str, where: execute.Device, x: Array, residual: Array | None, out: Array | None) -> tuple[Any, ...]:
    number = x.data.device_id if where == "cuda" else None
    return kind, where, number, *(array_key(array, where) for array in (x, residual, out))
