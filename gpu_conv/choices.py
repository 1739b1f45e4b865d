"""Measured choices of kernel and tile: what ``tune`` writes, and dispatch reads in a block that asks for it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .cachedir import cache_dir
from .launch import Target
from .problem import ConvProblem

SCHEMA = "gpu_conv-tuned-1"


@dataclass(frozen=True)
class Choice:
    """The fastest way that was found to run one problem on one device.

    Attributes:
        summary: the problem as ``explain`` prints it.
        problem: every field of the ``ConvProblem``: the key.
        kernel: a row of the dispatch table.
        tile: fields of the family's tile; None for the one that the family takes by itself.
        us: median microseconds.
        table_us: the same of what the dispatch table takes.
        tried: the other candidates, each with its kernel, tile and ``us``, or the ``error`` that ruled it out.
    """

    summary: str
    problem: Mapping[str, Any]
    kernel: str
    tile: Mapping[str, Any] | None
    us: float
    table_us: float
    tried: Sequence[Mapping[str, Any]] = ()

    @property
    def speedup(self) -> float:
        """How many times faster than the table's choice; 1 where that is the fastest."""
        return self.table_us / self.us


class Choices:
    """The choices of some files, by device and problem."""

    def __init__(self) -> None:
        self._found: dict[str, Choice] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, document: Mapping[str, Any]) -> None:
        """Take over the choices of one file."""
        for entry in document["choices"]:
            choice = Choice(**entry)
            self._found[_key(document["device"], choice.problem)] = choice

    def find(self, problem: ConvProblem, target: Target) -> Choice | None:
        """What was measured on this very kind of device for this very problem."""
        return self._found.get(_key(device_facts(target), signature(problem)))


def signature(problem: ConvProblem) -> dict[str, Any]:
    """Every field of a problem, as JSON keeps it."""
    return asdict(problem, dict_factory=lambda pairs: {name: _finite(value) for name, value in pairs})


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def device_facts(target: Target) -> dict[str, Any]:
    """What a choice is valid for."""
    return {"name": target.name, "arch": target.arch, "multiprocessors": target.multiprocessors}


def _key(device: Mapping[str, Any], problem: Mapping[str, Any]) -> str:
    import json

    return json.dumps([device, problem], sort_keys=True)


# -------------------------------------------------------------------------------------------------- what dispatch asks

_current: ContextVar[Choices | None] = ContextVar("gpu_conv_tuned_choices", default=None)


def current() -> Choices | None:
    """The choices of the block that runs; None outside of :func:`tuned`."""
    return _current.get()


@contextmanager
def tuned(path: str | os.PathLike[str] | None = None) -> Iterator[Choices]:
    """In this block (and this thread), what is planned follows the measurements of :func:`gpu_conv.tune`.

    A problem that was not measured on this kind of device is planned as ever. A layer or model keeps the plans of its
    first call: what was called before the block stays as it was, what is first called in it stays tuned afterwards.
    Tuning chooses among kernels of the same arithmetic; only the order of the additions can differ.

    Args:
        path: a file that ``tune`` wrote; without it, all files of this version in the cache folder.

    Raises:
        FileNotFoundError: there is no such file, or nothing in the cache folder.
        ValueError: the file is none of ``tune``, or one of another version of gpu_conv.

    Example:
        >>> import gpu_conv
        >>> with gpu_conv.tuned("h100.json"):  # doctest: +SKIP
        ...     model(inputs)
    """
    choices = Choices()
    for file in [Path(path)] if path is not None else _in_cache():
        choices.add(read(file))
    token = _current.set(choices)
    try:
        yield choices
    finally:
        _current.reset(token)


# ------------------------------------------------------------------------------------------------------------ the file


def default_path(target: Target) -> Path:
    """In the cache folder, by device and version."""
    device = re.sub(r"[^a-z0-9]+", "-", target.name.lower()).strip("-")
    return cache_dir("tuned") / f"{device}-{_version()}.json"


def _in_cache() -> list[Path]:
    folder = cache_dir("tuned")
    found = sorted(folder.glob(f"*-{_version()}.json"))
    if not found:
        raise FileNotFoundError(f"nothing was tuned for gpu_conv {_version()} in {folder}: gpu_conv.tune does that")
    return found


def read(path: Path) -> dict[str, Any]:
    """The document of one file.

    Raises:
        ValueError: it is none of ours, or of another version.
    """
    import json

    try:
        document = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a file of gpu_conv.tune: {error}") from None
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA:
        raise ValueError(f"{path} is not a file of gpu_conv.tune: its schema is {found!r}, not {SCHEMA!r}")
    if document["gpu_conv"] != _version():
        raise ValueError(
            f"{path} was measured with gpu_conv {document['gpu_conv']}, this is {_version()}, whose kernels may "
            "differ: tune again, into another file"
        )
    checked: dict[str, Any] = document
    return checked


def stamp(target: Target, driver: str | None, nvrtc: str) -> dict[str, Any]:
    """What measurements depend on, the head of a file."""
    device = device_facts(target)
    return {"schema": SCHEMA, "gpu_conv": _version(), "device": device, "driver": driver, "nvrtc": nvrtc}


def start(path: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices that a file already holds and that a new measurement may add to.

    A file of another driver or NVRTC counts as empty: its times are of other machine code.

    Raises:
        ValueError: it holds something else, or the choices of another device.
    """
    if not path.exists():
        return []
    document = read(path)
    if document["device"] != head["device"]:
        raise ValueError(
            f"{path} holds choices for {document['device']['name']}, this is {head['device']['name']}: "
            "give another path"
        )
    same = all(document[name] == head[name] for name in ("driver", "nvrtc"))
    return list(document["choices"]) if same else []


def write(path: Path, head: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """Replace the file at once, so that a reader never sees half of it."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps({**head, "choices": list(entries)}, indent=1) + "\n")
    os.replace(partial, path)


def _version() -> str:
    from . import __version__

    return __version__
