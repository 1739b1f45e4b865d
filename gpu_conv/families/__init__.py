"""Kernel families: one file per ``kernels/<family>.cu``, the host half of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..launch import Launch, Target
from ..problem import ConvProblem


@dataclass(frozen=True)
class Row:
    """One row of the dispatch table.

    Attributes:
        name: what ``kernel="name"`` forces and ``explain`` prints.
        refuses: legality: why this kernel cannot run the problem on the target, one line for the user; None if it can.
            Preference is not its business: that is the order of the table, and ``dispatch.PASSED_OVER``.
        plan: the launch for a problem that is not refused; where there are ``tiles``, one may follow as third argument.
        tiles: named tuples (made in a third of the time of frozen dataclasses: 0.4 ms less per class when a process
            begins), all that can run the problem, the best predicted first: ``plan`` takes that by itself. Empty where
            the family has no choice.
    """

    name: str
    refuses: Callable[[ConvProblem, Target], str | None]
    plan: Callable[..., Launch]
    tiles: Callable[[ConvProblem, Target], Iterable[Any]] = lambda problem, target: ()
