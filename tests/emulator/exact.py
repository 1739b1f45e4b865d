"""Correct rounding with rational numbers: the reference for floating-point instructions."""

from fractions import Fraction

import numpy as np

# precision (bits of the significand with the hidden one), smallest normal exponent, largest exponent
FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}
FORMATS["tf32"] = (11, -126, 127)


def round_to(value, kind, mode="rn"):
    """A Fraction rounded to a binary format, as a Python float (inf if it overflows)."""
    precision, lowest, highest = FORMATS[kind]
    if value == 0:
        return 0.0
    sign, magnitude = (-1, -value) if value < 0 else (1, value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, lowest) - precision + 1)
    steps, rest = divmod(magnitude, quantum)
    up = {
        "rn": rest * 2 > quantum or (rest * 2 == quantum and steps % 2 == 1),
        "rna": rest * 2 >= quantum,
        "rz": False,
        "rm": sign < 0 and rest > 0,
        "rp": sign > 0 and rest > 0,
    }[mode]
    result = (steps + up) * quantum
    largest = (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** highest
    if result > largest:
        away = mode in ("rn", "rna") or (mode == "rp" and sign > 0) or (mode == "rm" and sign < 0)
        return sign * (float("inf") if away else float(largest))
    return sign * float(result)


def same_bits(got, want):
    """Equal bit for bit, except that any NaN equals any other and zeros may differ in sign."""
    got, want = np.asarray(got), np.asarray(want, got.dtype)
    if got.dtype.kind in "iub":
        return bool(np.array_equal(got, want))
    wide_got, wide_want = got.astype(np.float64), want.astype(np.float64)
    return bool(np.array_equal(wide_got, wide_want, equal_nan=True))
