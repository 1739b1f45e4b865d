"""One convolution on CuPy arrays: checked, timed, related to the least traffic, and set beside the peers."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import Conv, choices, dispatch, explain, reference
from ..arguments import prepare
from . import LAYERS
from .peers import PEERS, Case

ENOUGH_BYTES = 16e6  # below that a launch is over before the memory is busy
BATCHES = (1, 8, 32, 128, 256)

Entry = dict[str, Any]


@dataclass(frozen=True)
class GpuLayer:
    """One convolution in one layout, dtype and batch, with its epilogue; ``kernel`` forces a row of the table."""

    name: str
    kind: str
    case: Case
    channels_last: bool
    activation: str | None = None
    has_residual: bool = False
    kernel: str | None = None

    @property
    def layout(self) -> str:
        return "nhwc" if self.channels_last else "nchw"

    def shape(self, channels: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Of an array in this layout."""
        n = self.case.batch
        return (n, *spatial, channels) if self.channels_last else (n, channels, *spatial)

    def options(self) -> dict[str, Any]:
        """Of ``gpu_conv.Conv``."""
        case, axes = self.case, "dhw"[3 - len(self.case.spatial) :]
        return {
            "strides": case.strides,
            "padding": tuple((p, 0 if case.causal else p) for p in case.padding),
            "dilations": case.dilations,
            "groups": case.groups,
            "input_layout": f"n{axes}c" if self.channels_last else f"nc{axes}",
            "filter_layout": f"o{axes}i" if self.channels_last else f"oi{axes}",
            "activation": self.activation,
        }

    def describe(self) -> Entry:
        """What a row of results says about it."""
        return {
            "layer": self.name,
            "class": self.kind,
            "rank": len(self.case.spatial),
            "batch": self.case.batch,
            "dtype": self.case.dtype,
            "layout": self.layout,
            "epilogue": [*(["add"] if self.has_residual else []), *([self.activation] if self.activation else [])],
        }


def layers(only: str, dtypes: Sequence[str], batch: int | None = None) -> Iterator[GpuLayer]:
    """The layers of :data:`LAYERS`, each at ``batch`` or at the smallest that moves 16 MB, in both layouts."""
    for layer in LAYERS:
        if only not in str(layer):
            continue
        for dtype in dtypes:
            cases = [
                Case(
                    batch=n,
                    channels=layer.channels,
                    filters=layer.filters,
                    groups=layer.groups,
                    spatial=(layer.size,) * 2,
                    kernel=(layer.k,) * 2,
                    strides=(layer.stride,) * 2,
                    padding=(layer.k // 2,) * 2,
                    dilations=(1, 1),
                    dtype=dtype,
                )
                for n in ([batch] if batch else BATCHES)
            ]
            case = next((c for c in cases if c.nbytes >= ENOUGH_BYTES), cases[-1])
            for channels_last in (True, False):
                yield GpuLayer(str(layer), layer.kind, case, channels_last)


class Device:
    """The GPU, and how long things take on it."""

    name: str | None = None  # as ``gpu_conv.Conv`` is told; CuPy arrays say where they are

    def __init__(self) -> None:
        from ..cuda import device, timing

        self.xp: Any = device.cupy()
        self.target = device.target()
        self.random: Any = self.xp.random.default_rng(0)
        self._timing = timing

    def operand_sets(self, nbytes: int) -> int:
        """How many exceed the second-level cache."""
        return self._timing.operand_sets(nbytes, most=64)

    def measure(self, calls: Sequence[Callable[[], object]]) -> Entry:
        """Times of one call: cold, its launch hidden by a graph."""
        return self._timing.measure(calls).as_dict()

    def call_us(self, call: Callable[[], object]) -> float:
        """Microseconds of a call from Python."""
        finish = self.xp.cuda.Device().synchronize
        return self._timing.measure_host(call, finish, budget_s=0.01, min_samples=3).us

    def copy_bandwidth(self) -> float:
        """Bytes read plus written per second by copies of 256 MB."""
        size = 256 << 20
        pairs = [(self.xp.zeros(size, np.uint8), self.xp.zeros(size, np.uint8)) for _ in range(2)]
        us = self.measure([lambda a=a, b=b: self.xp.copyto(b, a) for a, b in pairs])["us"]  # type: ignore[misc]
        return 2e6 * size / float(us)

    def free(self) -> None:
        """What a row has allocated."""
        self.xp.get_default_memory_pool().free_all_blocks()


class Run:
    """The arrays and the planned layer of one case."""

    def __init__(self, layer: GpuLayer, device: Device) -> None:
        self.layer, self.device, xp = layer, device, device.xp
        case = layer.case
        sets = device.operand_sets(case.nbytes)
        depth = case.channels // case.groups
        order = (case.filters, *case.kernel, depth) if layer.channels_last else (case.filters, depth, *case.kernel)
        self.xs = [self._random(layer.shape(case.channels, case.spatial)) for _ in range(sets)]
        self.w = self._random(order, 1 / math.sqrt(depth * math.prod(case.kernel)))
        self.bias = self._random((case.filters,))
        out = layer.shape(case.filters, case.out_spatial)
        self.ys = [xp.full(out, np.nan, case.dtype) for _ in range(sets)]
        self.residual = self._random(out) if layer.has_residual else None
        self.conv = Conv(self.w, self.bias, **layer.options(), kernel=layer.kernel, device=device.name)

    def _random(self, shape: tuple[int, ...], scale: float = 1.0) -> Any:
        values = self.device.random.standard_normal(shape, dtype=np.float32)
        return (values * np.float32(scale)).astype(self.layer.case.dtype)

    def __call__(self, i: int) -> None:
        self.conv(self.xs[i], residual=self.residual, out=self.ys[i])

    def check(self) -> float:
        """Largest error over the computed tolerance on the first image, against float64 on the host."""
        from ..testing.tolerance import tolerance

        self(0)
        host = getattr(self.device.xp, "asnumpy", np.asarray)
        x, w, bias, y = (host(a) for a in (self.xs[0][:1], self.w, self.bias, self.ys[0][:1]))
        residual = None if self.residual is None else host(self.residual[:1])
        call = prepare(x, w, bias, residual=residual, **self.layer.options())
        truth = reference.convolve(call.problem, call.operands)
        error = np.abs(call.y_view(y).astype(np.float64) - truth)
        worst = float((error / tolerance(call.problem, call.operands, truth)).max())
        return math.inf if math.isnan(worst) else worst


def ours(layer: GpuLayer, device: Device, copy_bandwidth: float, check: Callable[[Run], float] = Run.check) -> Entry:
    """Check, time, and relate to the roof."""
    run = Run(layer, device)
    error = check(run)
    problem = explain(run.xs[0], run.w, run.bias, **layer.options(), device=device.name).problem
    chosen = problem, device.target, layer.kernel, choices.current()
    launch = dispatch.plan(*chosen)
    timing = device.measure([lambda i=i: run(i) for i in range(len(run.xs))])  # type: ignore[misc]
    moved, us = problem.bytes + (run.residual.nbytes if run.residual is not None else 0), timing["us"]
    return {
        "kernel": dispatch.select(*chosen).name,
        "launch": launch.name_expression,
        "grid": launch.grid,
        "block": launch.block,
        "error_over_tolerance": round(error, 3),
        **timing,
        "bytes": moved,
        "gb_per_s": round(moved / us / 1e3, 1),
        "of_copy": round(moved / us * 1e6 / copy_bandwidth, 4) if copy_bandwidth else None,
        "tflops": round(problem.flops / us / 1e6, 3),
        "call_us": round(device.call_us(lambda: run(0)), 2),
    }


def attempt(function: Callable[[], Entry], free: Callable[[], None]) -> Entry:
    """A row's result, or its error: one bad row must not end a run that cannot be repeated cheaply."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001  (see above)
        steps = traceback.extract_tb(error.__traceback__)[-3:]
        where = [f"{Path(s.filename).name}:{s.lineno} {s.name}" for s in steps]  # of no machine's folders
        return {"error": f"{type(error).__name__}: {error}"[:500], "where": where}
    finally:
        free()


def row(
    layer: GpuLayer,
    device: Device,
    peers: Sequence[str],
    copy_bandwidth: float = 0.0,
    check: Callable[[Run], float] = Run.check,
) -> Entry:
    """One row of results: ours, and the peers of this layout."""
    entry = layer.describe() | attempt(lambda: ours(layer, device, copy_bandwidth, check), device.free)
    entry["peers"] = {}
    for name in peers:
        product = name.endswith("matmul")
        if name.endswith(layer.layout) or (product and layer.channels_last and layer.case.is_pointwise):
            entry["peers"][name] = attempt(
                lambda name=name: PEERS[name](layer.case, graph=True, budget_s=0.02).as_dict(),  # type: ignore[misc]
                device.free,
            )
    return entry
