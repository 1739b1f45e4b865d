"""What the depthwise kernels share: what they refuse, and how a problem is cut into bands of output rows."""

from __future__ import annotations

from ..launch import CTYPES
from ..problem import ConvProblem

DTYPES = ("float32", "float16", "bfloat16")
THREADS = 128  # of every depthwise kernel

# Output rows of a thread: unrolled, so that no product is computed for a row of another thread. The rows around a band
# are read twice, so the tallest that leaves WAVES waves of the device is taken.
HEIGHTS = (7, 4, 2)
WAVES = 2


def three(values: tuple[int, ...], fill: int) -> list[int]:
    """Leading axes of a problem with fewer than three."""
    return [fill] * (3 - len(values)) + list(values)


def refuses(p: ConvProblem) -> str | None:
    """What every depthwise kernel refuses."""
    if p.in_per_group != 1:
        return f"a group has {p.in_per_group} input channels; depthwise kernels take 1"
    if not 1 <= p.rank <= 3:
        return f"it has {p.rank} spatial axes; depthwise kernels run 1, 2 or 3"
    if p.x.dtype not in DTYPES or p.accumulate != "float32":
        return (
            f"x is {p.x.dtype} and sums are {p.accumulate}; depthwise kernels run {', '.join(DTYPES)} with float32 sums"
        )
    if any(d != 1 for d in p.input_dilations):
        return f"input_dilations are {p.input_dilations}; depthwise kernels take 1"
    if p.x.size == 0 or p.y.size == 0:
        return "x or y is empty"
    return None


def refuses_slices(p: ConvProblem) -> str | None:
    """What the kernels refuse that look at the bounds of the third axis for deeper filters only."""
    if p.rank == 3 and p.filter[0] == 1 and max(p.padding[0]) > 0:
        return f"padding is {p.padding}; a filter of one slice takes none along the first axis here"
    return None


def height(rows: int, blocks: int, wave: int) -> int:
    """Output rows of a thread, where bands of one row would be ``blocks`` blocks and a full device is ``wave``."""
    for rows_each in HEIGHTS:
        if blocks * -(-rows // rows_each) >= WAVES * wave * rows:
            break
    return min(rows_each, rows)


def ctypes(p: ConvProblem) -> list[str]:
    """Leading template arguments: the types of x, bias and y."""
    return [CTYPES[t] for t in (p.x.dtype, p.bias or "float32", p.y.dtype)]
