"""Errors of the emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Report


class PtxSyntaxError(ValueError):
    """The text is not PTX as NVRTC writes it."""


class UnsupportedPtx(NotImplementedError):
    """An opcode, type or modifier that the emulator doesn't know. It never guesses."""


class EmulationError(RuntimeError):
    """The kernel did something wrong. ``report`` holds every finding and the counters."""

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class Stopped(Exception):
    """Raised inside the emulator when a kernel cannot go on (deadlock, trap, endless loop)."""
