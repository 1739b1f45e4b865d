"""Why some mutants survive: rules over the kind of mutant, its PTX and the lines of CUDA that it comes from.

A rule stands for mutants that compute the same as the kernel, or that the cases of other instantiations are there to
find. What no rule explains is looked at by hand, and becomes a case, a check or a rule.
"""

import re
from functools import cache

from gpu_conv.cuda.source import KERNELS

# kind, PTX statement, text of the innermost or any calling line of CUDA, reason
BOUND = r"uint32\([^)]*\) [<>]=? uint32|at \+ i < 0|at > -N|at >= 0|at \+ N <=|row_inside|\binside \|="
SIZES = r"const bool valid|copy_async<COPY>|kYBytes"
RULES = (
    ("", "", r"copy_async<.*\btrue\)", "this copy is never cut short: its size is constant, behind a mask of ones"),
    (
        "copy all|change comparison",
        "",
        SIZES,
        "what is read beyond an edge meets zeros or is not stored; other instantiations meet Inf",
    ),
    ("copy all", "", r"inside\(p, row\[c\]", "rows outside of the map reach only outputs that are not stored here"),
    ("change immediate", r"selp\.[bu]64 .* 0,", "", "the address of a copy of zero bytes is not used"),
    ("change immediate", r"mul\.hi", "", "division by multiplication: the quotient is right for all sizes in use"),
    ("change (immediate|shift)", r"(and|shr)\.", r"%|/", "bits that are zero for every index in use"),
    ("", "", r"multiplier == 1 \?", "division by 1 gives the same"),
    ("", r"setp\.|or\.pred|and\.pred", BOUND, "a bound that this copy of an unrolled loop cannot reach"),
    ("", r"setp\.", r"e \+ k(Out)?Unit <=|kPerWord|at \+ i >= 0", "the wide and the narrow access do the same"),
    ("", r"setp\.", r"if \(q0 >= p\.out\[2\] ", "threads without outputs leave later: each output is checked again"),
    ("change comparison", r"setp\.", r"next_slab < end_slab", "one slab more is fetched, which nobody reads"),
    ("change comparison", r"setp\.", r"for \(int e = ", "one vector more, into shared memory that nobody reads"),
    ("", "", r"p\.group > 1 \?", "more rows are loaded than needed, into shared memory that nobody reads"),
    ("drop synchronisation|wait for fewer", r"wait_group 0", r"copy_wait<0>", "only empty groups are in flight"),
    ("", r"setp\.(lt|ge|gt|le)\.u32 \S+ \S+ \d+$", "", "iterations of a loop that the compiler unrolled"),
)


@cache
def _lines(file):
    path = KERNELS / file
    return path.read_text().splitlines() if path.exists() else []


def explain(result):
    """The reason of the first rule that fits, or None."""
    places = [place.rsplit(":", 1) for place in result.source.split(" < ") if place]
    texts = [_lines(file)[int(line) - 1] for file, line in places if len(_lines(file)) >= int(line)]
    statement = " ".join(result.mutant.before.split())
    for kind, ptx, cuda, reason in RULES:
        fits = re.match(kind, result.mutant.kind) and re.search(ptx, statement)
        if fits and (not cuda or any(re.search(cuda, text) for text in texts)):
            return reason
    return None
