"""From an image file to a classifier's input. Pillow does the decoding and the resampling."""

from __future__ import annotations

import importlib.util
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC

_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, EOFError)  # what Pillow's decoders raise

# Photographs that scikit-image and scikit-learn carry in their wheels: a package and the file in it.
_DEMONSTRATION = (
    ("skimage", "data/coffee.png"),
    ("skimage", "data/chelsea.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("skimage", "data/motorcycle_left.png"),
)


@dataclass(frozen=True)
class Preprocess:
    """Short side to ``short``, centre crop of ``size``, then ``(rgb / 255 - mean) / std``."""

    size: int = 224
    short: int = 256
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    resample: Image.Resampling = BILINEAR

    def __call__(self, file: str | Path) -> np.ndarray[Any, Any]:
        """The picture as float32 of shape (1, 3, size, size), layout nchw.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a picture that Pillow can read, or one of absurd dimensions.
        """
        image = _open(file)
        # Twice the short side is more than the crop can see. Without this, 1 x 10,000 pixels would grow to gigabytes.
        image = _centre(image, *(min(side, 2 * min(image.size)) for side in image.size))
        scale = self.short / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        image = _centre(image.resize((width, height), self.resample), self.size, self.size)
        rgb = np.asarray(image, np.float32) / 255
        normal = (rgb - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


def demonstration() -> list[Path]:
    """Coffee, a cat, a palace and a motorcycle, from the packages of the ``demo`` extra.

    Raises:
        FileNotFoundError: a package is not installed.
    """
    found = []
    for package, name in _DEMONSTRATION:
        spec = importlib.util.find_spec(package)
        picture = Path(spec.origin or "").parent / name if spec else Path(name)
        if not picture.is_file():
            raise FileNotFoundError("the demonstration pictures need: pip install 'gpu-conv[demo]'; or name a picture")
        found.append(picture)
    return found


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _open(file: str | Path) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns above 89 million pixels and refuses above twice that; a classifier needs neither.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as image:
                upright: Image.Image = ImageOps.exif_transpose(image)
                return upright.convert("RGB")
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except (*_UNREADABLE, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"{file} is not a picture that can be read: {error}") from error
