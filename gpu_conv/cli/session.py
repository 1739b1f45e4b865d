"""An ONNX model on a chosen device, NumPy arrays in and out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import gpu_conv.onnx

from ..cuda import device as gpu

Array = np.ndarray[Any, Any]


class Session:
    """A loaded model; ``device`` is "cpu", "emulator" or "cuda"."""

    def __init__(self, path: Path, device: str) -> None:
        self.device = device
        self.cupy = gpu.cupy() if device == "cuda" else None  # what is missing is better said before loading
        self.model = gpu_conv.onnx.load(path, device="emulator") if device == "emulator" else gpu_conv.onnx.load(path)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name; on a GPU this waits for them."""
        return {name: self._down(value) for name, value in self.model(self._up(feeds)).items()}

    def profile(self, feeds: Mapping[str, Array]) -> Any:
        """Time, kernel and bytes of every node."""
        return self.model.profile(self._up(feeds))

    def _up(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        return {name: self.cupy.asarray(value) if self.cupy else value for name, value in feeds.items()}

    def _down(self, value: Any) -> Array:
        host: Array = value.get() if self.cupy and hasattr(value, "get") else np.asarray(value)
        return host
