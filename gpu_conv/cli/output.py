"""What all commands share: the two consoles and the progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@contextmanager
def progress(first: str) -> Iterator[Callable[[str], None]]:
    """A bar on standard error, if that is a terminal, that disappears at the end; yields a function to name the step.

    Print results after the block: both consoles usually are the same screen.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, redirect_stdout=False, disable=not err.is_terminal) as bar:
        task = bar.add_task(first, total=None)
        yield lambda step: bar.reset(task, total=None, description=step)
