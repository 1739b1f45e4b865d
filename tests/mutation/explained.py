"""Why some mutants survive: rules over the kernel, the kind of mutant, its PTX and the lines of CUDA behind it.

A rule stands for mutants that compute the same as the kernel, for every problem that the kernel takes. What no rule
explains is looked at by hand, and becomes a case, a check or a rule.
"""

import re
from functools import cache

from gpu_conv.cuda.source import KERNELS

ANY_DEPTHWISE, UNROLLED = r"depthwise<", r"depthwise_n(hwc|chw)<"
TILES = r"conv_tile|depthwise_(toeplitz|n\w+_(tile|toeplitz)|ncw)"  # not as closely looked at as the other kernels
BOUND = r"uint32\([^)]*\) [<>]=? uint32|at \+ i < 0|at > -N|at >= 0|at \+ N <=|row_inside|\binside \|="
SIZES = r"const bool valid|copy_async<COPY>|kYBytes"
# kernel, kind, PTX statement -> mutant, text from the innermost or any calling line of CUDA on, reason
RULES = (
    (
        "direct",
        "change comparison",
        r"^setp\.(lt|ge)\.s",
        r"while \(tap < Index\(p\.tap_steps",
        "after tap_steps taps the remainders repeat: one tap more divides no better",
    ),
    (
        "direct",
        "change immediate",
        r"^setp\.(eq|ne)\.s\d+ \S+ \S+ 1 -> .* 0$",
        r"input_dilation == 1\) return",
        "the general path gives the same for an input dilation of 1",
    ),
    (
        "direct",
        "change immediate",
        r"^mov\.[ub](32|64) \S+ 0 ->",
        r"while \(tap < Index\(p\.tap_steps",
        "the first tap where there are no tap steps; there is always one",
    ),
    (
        "direct",
        "change immediate",
        r"^setp\.lt\.s\d+ \S+ \S+ 1 -> .* [02]$",
        r"while \(tap < Index\(p\.tap_steps",
        "there is always one tap step; where there is no other, all taps leave the remainder of the first",
    ),
    (
        r"direct<.*, 1, \d+>",
        "(lose|exchange) operation",
        r"^sub\.s",
        r"const Index left = ",
        "the one output of a tile exists: left is positive",
    ),
    (
        "direct",
        "change immediate",
        r"^setp\.gt\.s\d+ \S+ \S+ 0 -> .* -1$",
        r"meets\[j\] = j < left",
        "the first output of a tile exists",
    ),
    (
        "direct",
        "swap operands",
        r"^sub\.s",
        r"at % input_dilation != 0",
        "the remainder with the other sign: only whether it is zero counts",
    ),
    (
        "direct|depthwise|pointwise",
        "(lose|exchange) operation",
        r"^add\.f(32|64) \S+ \S+ 0[fd]0+ -> (mov|sub)",
        "",
        "zero is added where there is no residual: at most the sign of a zero changes",
    ),
    (
        ANY_DEPTHWISE + r"\w+, \w+, \w+, [248],",
        "shift address",
        r"^ld\.param",
        r"w_group = int\(p\.w_strides\[0\]\)",
        "vectors of channels have one filter per channel: the steps of the group and of its filters are equal",
    ),
    (
        ANY_DEPTHWISE + r"\w+, \w+, \w+, [248],",
        "exchange operation",
        r"^add\.s64",
        r"multiple \* s\[2\]",
        "vectors of channels have one filter per channel: multiple is 0",
    ),
    (
        ANY_DEPTHWISE,
        "change comparison",
        r"^setp\.(lt|ge)\.s32",
        r"for \(int first = -early; first < p\.filter\[2\]",
        "a chunk beyond the taps ends at its first tap; what it loaded lay inside the map",
    ),
    (
        ANY_DEPTHWISE,
        "change comparison",
        r"^setp\.(lt|ge)\.s32",
        r"if \(first \+ s >= p\.filter\[2\]\) break",
        "the first tap of a chunk exists, so that its bound is never met; those of the others have cases",
    ),
    (
        ANY_DEPTHWISE + r"\w+, \w+, \w+, (\d+, ){6}1,",
        "shift address",
        r"^ld\.param\.[bu]32 \S+ \[%rd\d+\+(256\] -> .*260|260\] -> .*256|80\] -> .*84|84\] -> .*80)\]$",
        "",
        "at stride 1 column_step, byte 260 of the params (84 behind the strides), is dilations[2], byte 256",
    ),
    (
        ANY_DEPTHWISE,
        "change immediate",
        r"^setp\.lt\.s32 \S+ \S+ 1 -> .* 0$",
        r"h >= p\.in\[1\]\) continue|for \(int (kd|kr|first) = ",
        "a filter has at least one tap along every axis",
    ),
    (
        r"depthwise_(nhwc<(\w+, ){7}|nchw<(\w+, ){8})1, ",
        "(exchange|lose) operation",
        r"^sub\.s32",
        r"d0 = depth \* p\.depth_stride - p\.padding\[0\]",
        "a filter of one slice has no padding along the depth: those problems are refused",
    ),
    (
        UNROLLED,
        "change comparison",
        r"^setp\.(ge|lt)\.s32",
        r"first >= rows\) return",
        "a thread without outputs leaves later: every row and column is checked again before it is stored",
    ),
    (
        UNROLLED,
        "change comparison",
        r"^setp\.(ge|lt)\.s32",
        r"if \(q0 \+ t( \* p\.dilations\[2\])? >= p\.out\[2\]\) continue",
        "the first output of a strip exists, so that its bound is never met; those of the others have cases",
    ),
    (
        UNROLLED,
        "(lose|exchange) operation",
        r"^xor\.pred",
        r"if \(mask >> ",
        "exclusive or with a predicate that is always false",
    ),
    (
        "pointwise",
        "copy all",
        "",
        r"copy_async<ACCESS::kYBytes>",
        "the residual outside of the output is staged and never stored",
    ),
    (
        "pointwise",
        "drop synchronisation|wait for fewer",
        r"wait_group 0",
        r"copy_wait<0>\(\);\n(\s*__syncthreads\(\);  // the ring is free|})",
        "each slab has been waited for before its products; the groups after the last one are empty",
    ),
    (
        "pointwise",
        "change (shift|immediate)",
        r"^shr\.s32 \S+ \S+ (6 -> .* 5|7 -> .* 6)$|^add\.s32 \S+ \S+ (63 -> .* 64|127 -> .* 128)$",
        r"slabs = ceil_div\(p\.in_channels",
        "slabs beyond the channels are copies of zeros",
    ),
    (
        "pointwise",
        "change (comparison|guard)",
        r"^(setp\.(lt|ge|gt)\.s32|@%p\d+ bra \S+ -> bra )",
        r"next_tile < p\.pixel_tiles && next_slab < end_slab",
        "one slab more is fetched, which nobody reads, and waited for before its memory is used again",
    ),
    (
        "pointwise",
        "change comparison",
        r"^setp\.(lt|ge)\.s32",
        r"copy_wait<kStages - 2>",
        "fetch_next's bound of a block's first tile, moved before the wait: every block has a first tile",
    ),
    (
        "pointwise",
        "change comparison|change immediate",
        r"^setp\.(lt|ge)\.u32 \S+ \S+ \d+ ",
        r"shared_bias\[c\] = channel_term",
        "the number of rounds is a constant, one, and far from the bound of an unrolled loop",
    ),
    (
        TILES,
        "",
        "",
        r"copy_async<.*\btrue\)",
        "this copy is never cut short: its size is constant, behind a mask of ones",
    ),
    (TILES, "copy all|change comparison", "", SIZES, "what is read beyond an edge meets zeros or is not stored"),
    (
        TILES,
        "copy all",
        "",
        r"inside\(p, c, row\[c\]",
        "rows outside of the map reach only outputs that are not stored here",
    ),
    (
        f"{TILES}|pointwise",
        "change immediate",
        r"selp\.[bu]64 .* 0, ",
        "",
        "the address of a copy of zero bytes is not used",
    ),
    (
        TILES,
        "change immediate",
        r"mul\.hi",
        "",
        "division by multiplication: the quotient is right for all sizes in use",
    ),
    (TILES, "change (immediate|shift)", r"(and|shr)\.", r"%|/", "bits that are zero for every index in use"),
    (TILES, "", "", r"multiplier == 1 \?", "division by 1 gives the same"),
    (TILES, "", r"setp\.|or\.pred|and\.pred", BOUND, "a bound that this copy of an unrolled loop cannot reach"),
    (TILES, "", r"setp\.", r"e \+ k(Out)?Unit <=|kPerWord|at \+ i >= 0", "the wide and the narrow access do the same"),
    (
        TILES,
        "",
        r"setp\.",
        r"if \(q0 >= p\.out\[2\] ",
        "threads without outputs leave later: each output is checked again",
    ),
    (TILES, "change comparison", r"setp\.", r"for \(int e = ", "one vector more, into shared memory that nobody reads"),
    (TILES, "", "", r"p\.group > 1 \?", "more rows are loaded than needed, into shared memory that nobody reads"),
    (
        "depthwise_nhwc_toeplitz",
        "compare as signed",
        r"^setp\.",
        r"kChannels \* filter_pitch",
        "shared memory is smaller than 2^31 bytes",
    ),
    (
        "depthwise_nhwc_toeplitz",
        "",
        r"setp\.|pred",
        r"g \+ 8 \* half, o, 2 \* t \+ c\);\n\s*if \(!pixel",
        "an output that does not exist may be computed: it is not stored",
    ),
    (
        "depthwise_nhwc_toeplitz",
        "(lose|exchange) operation|change immediate",
        r"1048575",
        r"reciprocal\(",
        "division by multiplication: the quotient is right for all sizes in use",
    ),
    (TILES, "drop synchronisation|wait for fewer", r"wait_group 0", r"copy_wait<0>", "only empty groups are in flight"),
    (TILES, "", r"setp\.(lt|ge|gt|le)\.u32 \S+ \S+ \d+ ", "", "iterations of a loop that the compiler unrolled"),
)


@cache
def _lines(file):
    path = KERNELS / file
    return path.read_text().splitlines() if path.exists() else []


def _text(place):
    """A line of CUDA and the one after it."""
    file, line = place.rsplit(":", 1)
    return "\n".join(_lines(file)[int(line) - 1 : int(line) + 1])


def _fits(pattern, text):
    """Whether the pattern is found where it begins on the first line."""
    return any(match.start() < len(text.split("\n")[0]) for match in re.finditer(pattern, text))


def explain(result):
    """The reason of the first rule that fits, or None."""
    texts = [_text(place) for place in result.source.split(" < ") if place]
    mutant = result.mutant
    change = " -> ".join(" ".join(statement.split()) for statement in (mutant.before, mutant.after))
    for kernel, kind, ptx, cuda, reason in RULES:
        fits = re.match(kernel, result.kernel) and re.match(kind, mutant.kind) and re.search(ptx, change)
        if fits and (not cuda or any(_fits(cuda, text) for text in texts)):
            return reason
    return None
