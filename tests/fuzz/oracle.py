"""Convolution straight from its definition, one tap at a time, in float64, int64 or complex128.

It shares nothing with the package: layouts are read letter by letter, sizes and padding have formulas of their own, a
forward convolution gathers by index and a transposed one scatters.
"""

from math import prod

import numpy as np

WIDE = {"f": np.float64, "V": np.float64, "i": np.int64, "u": np.int64, "c": np.complex128}


def letters(rank):
    return "dhw"[3 - rank :] if rank <= 3 else "".join(map(str, range(rank)))


def to(array, layout, wanted):
    return array.transpose([layout.index(a) for a in wanted])


def widen(array):
    return array.astype(WIDE[array.dtype.kind])


def sums(x, w, o, transposed):
    """Convolution without epilogue, axes ``n o *spatial``; ``o`` are all options, each in its longest form."""
    rank = x.ndim - 2
    names = letters(rank)
    x = to(widen(x), o["input_layout"], "nc" + names)
    w = widen(w)
    if "g" in o["filter_layout"]:
        w = to(w, o["filter_layout"], "goi" + names)
        w = w.reshape(w.shape[0] * w.shape[1], *w.shape[2:])
    else:
        w = to(w, o["filter_layout"], ("io" if transposed else "oi") + names)
    x = x - o.get("x_zero_point", 0)
    w = w - np.reshape(o.get("w_zero_point", 0), (-1,) + (1,) * (rank + 1))
    return scatter(x, w, o) if transposed else gather(x, w, o)


def pads(o, axis, size, window, stride):
    given = o["padding"]
    if given == "valid":
        return 0, 0
    if isinstance(given, str):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        return (total // 2, total - total // 2) if given == "same_upper" else (total - total // 2, total // 2)
    return given[axis]


def gather(x, w, o):
    """y[q] = sum over k of x at (q * stride + k * dilation - lo) / input_dilation, where that is an element."""
    rank, batches = x.ndim - 2, o["batch_groups"]
    if batches > 1:  # the blocks of the batch are what the groups of channels are otherwise
        n, c, *sizes = x.shape
        x = np.moveaxis(x.reshape(batches, n // batches, c, *sizes), 0, 1).reshape(n // batches, batches * c, *sizes)
    groups = max(o["groups"], batches)
    indices, outs = [], []
    for axis in range(rank):
        n, k = x.shape[2 + axis], w.shape[2 + axis]
        s, d, ld = (o[name][axis] for name in ("strides", "dilations", "input_dilations"))
        length, window = (n - 1) * ld + 1 if n else 0, (k - 1) * d + 1
        lo, hi = pads(o, axis, length, window, s)
        total = lo + length + hi
        # positions of the dilated input that remain after cropping
        out = len(range(0, total - window + 1, s)) if total > 0 else 0
        at = np.arange(out)[:, None] * s + np.arange(k) * d - lo
        fits = (at % ld == 0) & (at >= 0) & (at < length) & (at >= -lo) & (at < length + hi)
        indices.append(np.where(fits, at // ld, -1))
        outs.append(out)
    x = np.pad(x, [(0, 0)] * 2 + [(0, 1)] * rank)  # index -1 reads a zero
    n, per = x.shape[0], w.shape[0] // groups
    y = np.zeros((n, groups, per, *outs), x.dtype)
    for k in np.ndindex(*w.shape[2:]):
        taken = x
        for axis in range(rank):
            taken = taken.take(indices[axis][:, k[axis]], axis=2 + axis)
        taken = taken.reshape(n, groups, x.shape[1] // groups, prod(outs))
        tap = w[(slice(None), slice(None), *k)].reshape(groups, per, w.shape[1])
        y += np.matmul(tap, taken).reshape(y.shape)
    return y.reshape(n, groups * per, *outs)


def scatter(x, w, o):
    """Every x[i] is added to y[i * stride + k * dilation - lo], as the gradient of a convolution does."""
    rank, groups = x.ndim - 2, o["groups"]
    n, c = x.shape[:2]
    x = x.reshape(n, groups, c // groups, *x.shape[2:])
    w = w.reshape(groups, c // groups, *w.shape[1:])
    whole, keep = [], []
    for axis in range(rank):
        size, k, s, d = x.shape[3 + axis], w.shape[3 + axis], o["strides"][axis], o["dilations"][axis]
        lo, hi = o["padding"][axis]
        out = (size - 1) * s + (k - 1) * d + 1 - lo - hi + o["output_padding"][axis]
        whole.append(max(0, -lo) + max((size - 1) * s + (k - 1) * d + 1, lo + out) + max(0, out))
        keep.append(slice(max(0, -lo) + lo, max(0, -lo) + lo + out))
    y = np.zeros((n, groups, w.shape[2], *whole), x.dtype)
    flat = x.reshape(n, groups, c // groups, prod(x.shape[3:]))
    for k in np.ndindex(*w.shape[3:]):
        tap = w[(slice(None),) * 3 + k]
        product = np.matmul(tap.transpose(0, 2, 1), flat).reshape(n, groups, w.shape[2], *x.shape[3:])
        place = [
            slice(max(0, -o["padding"][a][0]) + k[a] * o["dilations"][a], None, o["strides"][a]) for a in range(rank)
        ]
        place = [slice(p.start, p.start + (x.shape[3 + a] - 1) * p.step + 1, p.step) for a, p in enumerate(place)]
        y[(..., *place)] += product
    return y[(..., *keep)].reshape(n, groups * w.shape[2], *(s.stop - s.start for s in keep))
