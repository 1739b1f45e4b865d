"""What the translator knows of one matrix product of a warpgroup."""

from __future__ import annotations

from dataclasses import dataclass

DEPTHS = {"f16": 16, "bf16": 16, "tf32": 8, "s8": 32, "u8": 32}  # elements of k, 32 bytes


@dataclass(frozen=True)
class Product:
    """One ``wgmma.mma_async``.

    Attributes:
        columns: N. ``kinds``: PTX types of A and B.
        negate_a, negate_b: the sign of the operand is changed.
        across_a, across_b: the operand is MN-major.
        results: numbers of the accumulator registers; ``fragments``: of the registers of A, if it has any.
        unfenced: names of registers that may have been used otherwise since the last ``wgmma.fence``.
    """

    columns: int
    kinds: tuple[str, str]
    negate_a: bool
    negate_b: bool
    across_a: bool
    across_b: bool
    results: tuple[int, ...]
    fragments: tuple[int, ...]
    unfenced: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"m64n{self.columns}k{DEPTHS[self.kinds[0]]}.{'.'.join(self.kinds)}"
