"""``gpu-conv classify``: pictures in, the most probable classes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from .output import out, print_json, progress
from .session import Array, Session

_BAR = 24  # characters for a probability of 1


def classify(images: Sequence[Path], model: str, top: int, profile: bool, device: str, as_json: bool = False) -> None:
    """Print the ``top`` classes of each picture, and a profile of the last one if asked.

    Raises:
        ValueError: an unknown model, a picture that cannot be read, a model that is no image classifier.
        OSError: a file that is not there.
        ModuleNotFoundError: a part of the ``demo`` extra is missing.
    """
    try:
        from ..models import pictures
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"classify needs {error.name}: pip install 'gpu-conv[demo]'") from error

    files = list(images) or pictures.demonstration()
    with progress(f"loading {model}") as step:
        classifier = _Classifier(model, device, step)
    pictures_found: list[dict[str, Any]] = []
    for file in files:
        picture = classifier.preprocess(file)
        with progress(f"classifying {file.name}"):
            began = time.perf_counter()
            probabilities = classifier(picture)
            seconds = time.perf_counter() - began
        best = _best(probabilities, classifier.labels, top)
        pictures_found.append({"file": str(file), "milliseconds": seconds * 1e3, "classes": best})
        if not as_json:
            out.print(Text.assemble("\n", (file.name, "bold"), f"  {seconds * 1e3:.0f} ms"))
            out.print(_table(best))
    report = None
    if profile:
        with progress(f"profiling {files[-1].name}"):
            report = classifier.profile(picture)
        if not as_json:
            out.print(f"\n{report}", markup=False, soft_wrap=True)
    if as_json:
        steps = {} if report is None else {"profile": [asdict(record) for record in report]}
        print_json({"model": model, "device": device, "pictures": pictures_found} | steps)


class _Classifier:
    """A model with its preprocessing and its labels."""

    def __init__(self, model: str, device: str, step: Callable[[str], None]) -> None:
        from .. import models

        known = models.MODELS.get(model)
        if known is None and not Path(model).is_file():
            raise ValueError(f"--model {model}: neither a file nor one of {', '.join(models.MODELS)}")
        path = models.path(model, step) if known else Path(model)
        self.labels = models.labels(step)
        step(f"loading {path.name}")
        self.session = Session(path, device)
        self.input, side = self._image_input(path)
        self.preprocess = known.preprocess if known else models.Preprocess()
        if side not in (None, self.preprocess.size):
            self.preprocess = replace(self.preprocess, size=side, short=round(side * 256 / 224))

    def _image_input(self, path: Path) -> tuple[str, int | None]:
        """Name and side of the one input (n, 3, side, side); None for an open side."""
        ports = self.session.model.inputs
        shape = ports[0].shape if len(ports) == 1 else None
        if shape is None or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            raise ValueError(f"{path} is no image classifier: it takes {', '.join(map(str, ports))}, not (n, 3, h, w)")
        return ports[0].name, shape[2] if isinstance(shape[2], int) else None

    def __call__(self, picture: Array) -> Array:
        """Probabilities of all classes."""
        outputs = self.session({self.input: picture})
        scores = next(iter(outputs.values())).reshape(-1).astype(np.float64)
        if scores.min() >= 0 and abs(scores.sum() - 1) < 1e-3:
            return scores  # the model ends in a softmax of its own
        exponentials: Array = np.exp(scores - scores.max())
        exponentials /= exponentials.sum()
        return exponentials

    def profile(self, picture: Array) -> Any:
        """What the runner measured, layer by layer."""
        return self.session.profile({self.input: picture})


def _best(probabilities: Array, labels: Sequence[str], top: int) -> list[dict[str, Any]]:
    indices = map(int, np.argsort(-probabilities, kind="stable")[:top])
    return [
        {"label": _label(i, len(probabilities), labels), "index": i, "probability": float(probabilities[i])}
        for i in indices
    ]


def _table(best: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in best:
        bar = Text("█" * round(row["probability"] * _BAR), style="green")
        table.add_row(Text(row["label"]), f"{row['probability']:.3f}", bar)
    return table


def _label(index: int, classes: int, labels: Sequence[str]) -> str:
    """The first name of an ImageNet class; the number where the model has other classes."""
    background = classes - len(labels)  # TensorFlow's models have 1001 classes, the first one is "background"
    if background not in (0, 1):
        return f"class {index}"
    return "background" if index < background else labels[index - background].partition(",")[0]
