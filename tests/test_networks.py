"""Mobile networks with random weights through the ONNX runner against onnxruntime, small here.

Full resolution: ``python benchmarks/networks.py``; all in the emulator: ``... --size 32 --device EMULATOR``.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.networks import NETWORKS, compare, picture
from gpu_conv.onnx import load

from .graph_models import TOLERANCE, expected

# What is left of each graph beside its convolutions and its one pooling, flattening and dense layer.
LEFT = {
    "mobilenet_v1": {"Conv": 27},
    "mobilenet_v2": {"Conv": 52},
    "mobilenet_v3_large": {"Conv": 62, "GlobalAveragePool": 8, "Mul": 8, "Gemm": 1, "HardSwish": 1},
    "mobilenet_v3_small": {"Conv": 52, "GlobalAveragePool": 9, "Mul": 9, "Gemm": 1, "HardSwish": 1},
    "efficientnet_b0": {"Conv": 81, "GlobalAveragePool": 16, "Mul": 16},
    "efficientnet_lite0": {"Conv": 49},
    "shufflenet_v1": {"Conv": 49, "ChannelShuffle": 16, "MaxPool": 1, "AveragePool": 3, "Concat": 3, "Relu": 3},
    "shufflenet_v2": {"Conv": 56, "ChannelShuffle": 16, "MaxPool": 1, "Concat": 16, "Split": 13},
    "mobileone_s0": {"Conv": 191, "Affine": 35, "Add": 35, "Relu": 35},
}


def test_there_are_ten() -> None:
    assert len(NETWORKS) == 10


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    """Half as wide, at 64x64, planned and replayed."""
    model = NETWORKS[name](64, 0.5)
    x = picture(64, batch=2)
    (wanted,) = expected(model, {"x": x}).values()
    assert np.isfinite(wanted).all() and wanted.std() > 0
    runner = load(model)
    for _ in range(2):
        (found,) = runner(x).values()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())
    if name in LEFT:
        ends = Counter(GlobalAveragePool=1, Flatten=1, Gemm=1)
        assert Counter(n.op for n in runner.graph.nodes) == Counter(LEFT[name]) + ends


# In the emulator the two whose layers are least like those of MobileNetV2 (tests/test_mobilenet.py) and cost little.
ON_KERNELS = [
    *(pytest.param("EMULATOR", name, 32, 0.25, id=f"emulator-{name}") for name in ("shufflenet_v2", "convnext_t")),
    *(pytest.param("CUDA", name, 224, 1.0, id=f"cuda-{name}", marks=pytest.mark.gpu) for name in NETWORKS),
]


@pytest.mark.parametrize(("device", "name", "size", "width"), ON_KERNELS)
def test_on_kernels(device: str, name: str, size: int, width: float) -> None:
    assert compare(name, size, device, width)["error"] < TOLERANCE
