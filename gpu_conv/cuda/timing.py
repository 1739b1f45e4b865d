"""The one timing helper: cold L2, CUDA-graph replays back to back, median and spread.

A measurement takes a list of calls, one per operand set. The sets together exceed the L2 cache several times
(:func:`operand_sets`), so that every call finds its input in DRAM. One sample is one replay of a graph that goes round
the sets until it is long enough (``min_graph_us``) to hide event and launch overhead; replays are queued without a
synchronisation in between, so the GPU never waits for the host. ``graph=False`` times the same sequence issued from
Python: what a user of an eager framework gets, host cost included.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from .device import cupy

MIN_GRAPH_US = 500.0  # events resolve about 0.5 us: 0.1 % of a sample
MAX_GRAPH_NODES = 2000
L2_FACTOR = 3.0  # bytes of all operand sets over the L2 size


@dataclass(frozen=True)
class Timing:
    """Time of one call in microseconds: median, 20th and 80th percentile over ``n`` samples of ``calls`` calls each.

    ``method`` is ``"graph"``, ``"events"`` or ``"host"``.
    """

    us: float
    p20: float
    p80: float
    n: int
    calls: int
    method: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, times rounded to a nanosecond."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


def summarize(samples_us: Sequence[float], calls: int, method: str) -> Timing:
    """Median and the 20th and 80th percentile of samples that are already microseconds per call."""
    ordered = sorted(samples_us)
    last = len(ordered) - 1
    return Timing(
        statistics.median(ordered),
        ordered[round(0.2 * last)],
        ordered[round(0.8 * last)],
        len(ordered),
        calls,
        method,
    )


def l2_bytes() -> int:
    """Size of the L2 cache of the current device."""
    return int(cupy().cuda.Device().attributes["L2CacheSize"])


def operand_sets(bytes_per_set: int, *, factor: float = L2_FACTOR, most: int = 256) -> int:
    """How many operand sets exceed the L2 cache ``factor`` times; at least 2, at most ``most``."""
    return int(min(most, max(2, -(-factor * l2_bytes() // max(1, bytes_per_set)))))


@contextmanager
def benchmark_stream() -> Iterator[Any]:
    """Make one non-default stream current for CuPy and, if loaded, PyTorch: the default stream cannot be captured."""
    cuda = cupy().cuda
    stream = cuda.Stream(non_blocking=True)
    torch = sys.modules.get("torch")
    cuda.Device().synchronize()  # operands may still be being written on the default stream
    with stream:
        if torch is None:
            yield stream
        else:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
                yield stream
    cuda.Device().synchronize()


def rotate(calls: int, function: Callable[[int], object]) -> list[Callable[[], object]]:
    """One call per operand set; each keeps its latest result alive until its next turn."""
    kept: list[object] = [None] * calls

    def call(i: int) -> None:
        kept[i] = function(i)

    return [lambda i=i: call(i) for i in range(calls)]  # type: ignore[misc]


def _round(calls: Sequence[Callable[[], object]], count: int) -> None:
    for i in range(count):
        calls[i % len(calls)]()


def _samples(run: Callable[[], object], count: int) -> list[float]:
    """Microseconds of ``count`` back-to-back runs on the current stream."""
    cuda = cupy().cuda
    events = [cuda.Event() for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    events[-1].synchronize()
    return [1e3 * cuda.get_elapsed_time(a, b) for a, b in pairwise(events)]


def measure(
    calls: Sequence[Callable[[], object]],
    *,
    graph: bool = True,
    budget_s: float = 0.06,
    min_samples: int = 7,
    max_samples: int = 60,
    min_graph_us: float = MIN_GRAPH_US,
) -> Timing:
    """Time one call of a rotation of calls, each enqueuing GPU work on the current stream.

    Args:
        calls: one callable per operand set, all doing the same work.
        graph: replay a captured CUDA graph; with ``False`` issue the calls from Python between events.
        budget_s: GPU time to spend on the samples.
        min_samples, max_samples: number of samples, chosen in between to fill the budget.
        min_graph_us: shortest sample.

    Raises:
        whatever the calls raise, also when they cannot be captured.
    """
    with benchmark_stream() as stream:
        _round(calls, len(calls))  # compilation, autotuning and allocation happen here
        stream.synchronize()
        estimate = _samples(lambda: _round(calls, len(calls)), 1)[0] / len(calls)
        count = min(MAX_GRAPH_NODES, max(len(calls), int(min_graph_us / max(estimate, 0.5))))
        count = -(-count // len(calls)) * len(calls)
        if graph:
            stream.begin_capture()
            try:
                _round(calls, count)
            finally:
                captured = stream.end_capture()
            run: Callable[[], object] = lambda: captured.launch(stream)  # noqa: E731
        else:
            run = lambda: _round(calls, count)  # noqa: E731
        once = _samples(run, 2)[-1]
        wanted = int(min(max_samples, max(min_samples, budget_s * 1e6 / max(once, 1.0))))
        samples = _samples(run, wanted)
    return summarize([s / count for s in samples], count, "graph" if graph else "events")


def measure_host(
    call: Callable[[], object], finish: Callable[[], object], *, budget_s: float = 0.2, min_samples: int = 7
) -> Timing:
    """Host-clock time of one call for asynchronous libraries without CUDA events (JAX).

    ``call`` enqueues one unit of work, ``finish`` waits for all of it. A sample is a batch of calls long enough
    (2 ms) for the final wait to disappear in it.
    """

    def batch(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        finish()
        return time.perf_counter() - start

    batch(2)
    per_call = max(1e-7, batch(4) / 4)
    count = max(1, int(2e-3 / per_call))
    wanted = int(min(60, max(min_samples, budget_s / (per_call * count))))
    return summarize([batch(count) / count * 1e6 for _ in range(wanted)], count, "host")
