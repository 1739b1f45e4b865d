"""Timing beside other libraries: ``cpu`` for NumPy arrays, ``gpu`` for CuPy arrays, ``plot`` for pictures of both."""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA = "gpu_conv-bench-1"


@dataclass(frozen=True)
class Layer:
    """One convolution of MobileNet or ResNet, ``same`` padding."""

    kind: str
    name: str
    channels: int
    filters: int
    size: int
    k: int = 3
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


LAYERS = (
    Layer("stem", "3x3 s2 3>32 @224", 3, 32, 224, stride=2),
    Layer("depthwise", "3x3 32 @112", 32, 32, 112, groups=32),
    Layer("depthwise", "3x3 s2 96 @112", 96, 96, 112, stride=2, groups=96),
    Layer("depthwise", "3x3 144 @56", 144, 144, 56, groups=144),
    Layer("depthwise", "3x3 192 @28", 192, 192, 28, groups=192),
    Layer("depthwise", "3x3 384 @14", 384, 384, 14, groups=384),
    Layer("depthwise", "3x3 960 @7", 960, 960, 7, groups=960),
    Layer("pointwise", "32>16 @112", 32, 16, 112, k=1),
    Layer("pointwise", "24>144 @56", 24, 144, 56, k=1),
    Layer("pointwise", "96>576 @14", 96, 576, 14, k=1),
    Layer("pointwise", "320>1280 @7", 320, 1280, 7, k=1),
    Layer("grouped", "3x3 g32 128 @56", 128, 128, 56, groups=32),
    Layer("dense", "3x3 64 @56", 64, 64, 56),
    Layer("dense", "3x3 128 @28", 128, 128, 28),
    Layer("dense", "3x3 256 @14", 256, 256, 14),
    Layer("dense", "3x3 512 @7", 512, 512, 7),
)
