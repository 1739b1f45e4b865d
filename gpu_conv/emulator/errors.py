"""Errors of the emulator."""

from __future__ import annotations


class PtxSyntaxError(ValueError):
    """The text is not PTX as NVRTC writes it."""


class UnsupportedPtx(NotImplementedError):
    """An opcode, type or modifier that the emulator doesn't know. It never guesses."""


class Stopped(Exception):
    """Raised inside the emulator when a kernel cannot go on (deadlock, trap, endless loop)."""
