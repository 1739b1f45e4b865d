"""Where files that can be made again are kept: compiled kernels, downloaded models."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(kind: str) -> Path:
    """The folder for one kind of cached file, ``"kernels"`` or ``"models"``. It may not exist yet.

    ``GPU_CONV_CACHE`` names the folder above it; without it, ``$XDG_CACHE_HOME/gpu_conv`` or ``~/.cache/gpu_conv``.
    The variables are read at every call, so a test can move the cache.
    """
    if root := os.environ.get("GPU_CONV_CACHE"):
        return Path(root).expanduser() / kind
    # The XDG specification says to ignore a relative path.
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "gpu_conv" / kind
