"""What all commands share: the two consoles, JSON and the progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def counted(count: int, what: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def print_json(value: Any) -> None:
    """One JSON document on standard output; what JSON lacks (NaN, infinity) becomes null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return _plain(value.item()) if hasattr(value, "item") else str(value)


@contextmanager
def progress(first: str) -> Iterator[Callable[[str], None]]:
    """A bar on standard error, if that is a terminal, that disappears at the end; yields a function to name the step.

    Print results after the block: both consoles usually are the same screen.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, redirect_stdout=False, disable=not err.is_terminal) as bar:
        task = bar.add_task(first, total=None)
        yield lambda step: bar.reset(task, total=None, description=step)
