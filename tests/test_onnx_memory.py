"""The memory of a plan: values that are alive at the same time never share it, and it is close to what they need."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from benchmarks.networks import NETWORKS, picture
from gpu_conv.cuda.targets import KNOWN_TARGETS
from gpu_conv.execute import Recorder, instead
from gpu_conv.graph.buffers import LINE, Buffer, Pool, layout
from gpu_conv.onnx import load


class Watch:
    """Compares, after every step, all values that are still wanted with what they were when they were made."""

    def __init__(self) -> None:
        self.copies: dict[int, Any] = {}
        self.steps = self.nbytes = 0

    def start(self) -> None:
        self.copies.clear()

    def __call__(self, step: Any, seconds: float, values: list[Any]) -> None:
        made = set(step.outputs)
        for slot, copy in list(self.copies.items()):
            if values[slot] is None:
                del self.copies[slot]
            elif slot not in made:
                np.testing.assert_array_equal(values[slot], copy, err_msg=f"{step.call.node} wrote over a live value")
        self.copies.update((slot, np.array(values[slot])) for slot in made if values[slot] is not None)
        self.steps += 1
        self.nbytes += sum(values[slot].nbytes for slot in made)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2", "efficientnet_b0", "convnext_t"])
def test_live_values_share_no_memory(name: str, dtype: str) -> None:
    runner = load(NETWORKS[name](32, 0.25), dtype=dtype)
    x = picture(32, batch=2)
    runner(x)
    watch = Watch()
    runner._executor([x * 2], watch)
    assert watch.steps == runner.plans[0].steps


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large", "shufflenet_v1", "convnext_t"])
def test_memory_on_a_gpu(name: str) -> None:
    """Planned for a GPU, where nothing is padded: hardly more than the least possible (measured: 1.00 to 1.10)."""
    runner, watch, x = load(NETWORKS[name](64, 0.5), device="emulator"), Watch(), picture(64)
    with instead(Recorder(KNOWN_TARGETS["sm_90a"])):
        runner._executor([x], watch)
    (plan,) = runner.plans
    assert plan.live_bytes <= plan.buffer_bytes <= 1.15 * plan.live_bytes
    assert plan.buffer_bytes < watch.nbytes / 4


def test_layout() -> None:
    """Random lifetimes: no two buffers that meet overlap; a chain needs its two largest neighbours, no more."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        buffers = [made(int(rng.integers(1, 2000)), *sorted(rng.integers(0, 30, 2))) for _ in range(25)]
        places, size = layout(buffers)
        assert len(places) == 25
        for (a, at), (b, bt) in combinations(places, 2):
            apart = at + a.nbytes <= bt or bt + b.nbytes <= at
            assert apart or a.died <= b.born or b.died <= a.born
            assert at % LINE == bt % LINE == 0
        assert size == max(at + a.nbytes for a, at in places)
    _, size = layout([made(LINE * n, i, i + 1) for i, n in enumerate((1, 5, 3, 8, 2, 1, 7))])
    assert size == 11 * LINE


def made(size: int, born: int, died: int) -> Buffer:
    buffer = Buffer(np, ((size,), ((0, 0),), np.uint8))
    buffer.born, buffer.died = born, died + 1
    return buffer


def test_padded_buffers_keep_their_zeros() -> None:
    pool = Pool()
    padded = pool.take(np, (2, 3), ((0, 0), (1, 2)), np.float32)
    padded.array[...] = 1
    pool.hold(frozenset((padded,)))
    pool.drop(frozenset((padded,)))
    assert pool.take(np, (2, 3), ((0, 0), (1, 2)), np.float32) is padded
    np.testing.assert_array_equal(padded.whole, [[0, 1, 1, 1, 0, 0]] * 2)
    assert pool.nbytes == pool.live == 48
