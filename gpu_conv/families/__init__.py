"""Kernel families: one file per ``kernels/<family>.cu``, the host half of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..launch import Launch, Target
from ..problem import ConvProblem


@dataclass(frozen=True)
class Row:
    """One row of the dispatch table.

    Attributes:
        name: what ``kernel="name"`` forces and ``explain`` prints.
        refuses: legality: why this kernel cannot run the problem on the target, one line for the user; None if it can.
            Preference is not its business: that is the order of the table, and ``dispatch.SLOWER``.
        plan: the launch for a problem that is not refused.
    """

    name: str
    refuses: Callable[[ConvProblem, Target], str | None]
    plan: Callable[[ConvProblem, Target], Launch]
