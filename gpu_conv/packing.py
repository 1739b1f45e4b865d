"""The filter of a layer, laid out once in the order in which the kernels read it: 16 bytes of neighbours at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import Call, tensor
from .arrays import Array, address, namespace
from .locks import new_lock
from .problem import ConvProblem

if TYPE_CHECKING:
    from .families.inverted_residual_model import Chain, Tile


def order(problem: ConvProblem) -> tuple[int, ...]:
    """The axes ``g o c *filter`` of the filter, slowest first, as the kernels for this problem want them in memory.

    - A depthwise kernel whose neighbouring threads have neighbouring channels: the channels last.
    - Other depthwise kernels: tap after tap.
    - Matrix products: the input channels of a group last. A phase of a transposed convolution takes whole taps, so it
      reads vectors too.
    """
    taps = range(3, 3 + problem.rank)
    if problem.is_depthwise:
        return (*taps, 1, 2, 0) if problem.x.strides[1] == 1 else (0, 1, 2, *taps)
    return (0, 1, *taps, 2)


class Filters:
    """The packed copies of the filters of one layer: one per order, however many input shapes there are."""

    def __init__(self) -> None:
        self._packed: dict[Any, Any] = {}
        self._lock = new_lock()

    def pack(self, call: Call) -> Call:
        """The same call with the packed filter; itself where the filter lies well already."""
        problem, w = call.problem, call.operands["w"]
        axes = order(problem)
        if w is None or (problem.w.is_dense(axes) and problem.w.align == 16):
            return call
        packed = self._kept(
            (call.library, address(w), problem.w, axes), call.library, lambda: _copied(w, axes, namespace(call.library))
        )
        operands = {**call.operands, "w": packed}
        return replace(call, problem=replace(problem, w=tensor(packed)), operands=operands)

    def pack_chain(self, calls: Sequence[Call], chain: Chain, tile: Tile) -> dict[str, Array | None]:
        """The operands ``w`` and ``bias`` of an inverted residual's kernel: one copy per size of its slabs."""
        library = calls[-1].library
        key = library, tile.slab, *(address(call.operands["w"]) for call in calls)
        return self._kept(key, library, lambda: _chained(calls, chain, tile))  # type: ignore[no-any-return]

    def _kept(self, key: Any, library: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            packed = self._packed.get(key)
            if packed is None:
                packed = self._packed[key] = make()
                if library == "cupy":
                    from .cuda import device

                    device.settle()  # a later call may come on another stream
        return packed


def _copied(w: Array, axes: tuple[int, ...], xp: Any) -> Array:
    return xp.ascontiguousarray(w.transpose(axes)).transpose(tuple(np.argsort(axes).tolist()))


def _chained(calls: Sequence[Call], chain: Chain, tile: Tile) -> dict[str, Array | None]:
    from .families import inverted_residual  # here: `import gpu_conv` loads no kernel family

    *expand, depthwise, project = (call.operands for call in calls)
    xp, bias = namespace(calls[-1].library), project["bias"]
    filters = {"depthwise": depthwise["w"][:, 0, 0], "project": project["w"][0, :, :, 0, 0]}  # type: ignore[index]
    filters |= {"depthwise_bias": depthwise["bias"], "expand": None, "expand_bias": None}
    if expand:
        filters |= {"expand": expand[0]["w"][0, :, :, 0, 0], "expand_bias": expand[0]["bias"]}  # type: ignore[index]
    packed = inverted_residual.weights(chain, tile, filters, xp)
    return {"w": packed, "bias": None if bias is None else xp.asarray(bias, xp.float32)}
