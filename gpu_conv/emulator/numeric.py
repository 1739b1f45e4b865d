"""Arithmetic that NumPy doesn't have under one name. Generated code calls these functions by their names.

Operands are registers (:data:`lanes.Value`): NumPy scalars or one element per lane, already viewed as the type that
the instruction names. Results are of the same two kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .lanes import Value

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
i8, i16, i32, i64 = np.int8, np.int16, np.int32, np.int64
f16, f32, f64 = np.float16, np.float32, np.float64

UNSIGNED: dict[int, Any] = {1: u8, 2: u16, 4: u32, 8: u64}
SIGNED: dict[int, Any] = {1: i8, 2: i16, 4: i32, 8: i64}


def select(condition: Value, a: Value, b: Value) -> Value:
    """``condition ? a : b``."""
    if np.ndim(condition) == 0:
        return a if condition else b
    return np.where(condition, a, b)


def shift_left(a: Value, amount: Value) -> Value:
    """``shl``: amounts of the width and more give zero."""
    bits = 8 * a.dtype.itemsize
    shifted = a << np.minimum(amount, bits - 1).astype(a.dtype)
    return select(amount < bits, shifted, a.dtype.type(0))


def shift_right(a: Value, amount: Value) -> Value:
    """``shr``: arithmetic if ``a`` is signed; large amounts give the sign or zero."""
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(amount, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else select(amount < bits, shifted, a.dtype.type(0))


def divide(a: Value, b: Value) -> Value:
    """Integer division towards zero. Division by zero gives all ones, as NVIDIA GPUs do."""
    dtype = np.result_type(a, b).type
    zero = b == 0
    safe = select(zero, dtype(1), b) if np.any(zero) else b
    if np.dtype(dtype).kind == "u":
        quotient = a // safe
    elif np.dtype(dtype).itemsize < 8:
        quotient = np.trunc(np.divide(a, safe, dtype=f64)).astype(i64).astype(dtype)
    else:
        unsigned = np.abs(a).view(u64) // np.abs(safe).view(u64)
        quotient = select((a < 0) ^ (safe < 0), u64(0) - unsigned, unsigned).view(i64)
    return select(zero, ~dtype(0), quotient) if np.any(zero) else quotient


def remainder(a: Value, b: Value) -> Value:
    """``rem``: the sign of the dividend. Modulo zero gives the dividend plus the (all ones) quotient times zero."""
    return a - divide(a, b) * b


def multiply_high(a: Value, b: Value) -> Value:
    """The upper half of the product."""
    size = a.dtype.itemsize
    if size < 8:
        wide = (SIGNED if a.dtype.kind == "i" else UNSIGNED)[2 * size]
        return ((a.astype(wide) * b.astype(wide)) >> wide(8 * size)).astype(a.dtype)
    x, y = a.view(u64), b.view(u64)
    low, half = u64(0xFFFFFFFF), u64(32)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + ((x0 * y0) >> half)
    high = x1 * y1 + (middle >> half) + ((x0 * y1 + (middle & low)) >> half)
    if a.dtype.kind == "i":
        high = high - select(a < 0, y, u64(0)) - select(b < 0, x, u64(0))
    return high.view(a.dtype)


_ROUNDING: dict[str, Callable[[Value], Value]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def round_to_integral(x: Value, mode: str) -> Value:
    """``cvt.rni`` and its like between floating types."""
    return _ROUNDING[mode](x)


def float_to_integer(x: Value, dtype: Any, mode: str) -> Value:
    """Rounded and clamped to the target's range; NaN becomes zero."""
    x = _ROUNDING[mode](x.astype(f64))
    info = np.iinfo(dtype)
    if info.bits < 64:
        return np.clip(select(np.isnan(x), 0.0, x), info.min, info.max).astype(i64).astype(dtype)
    # float64 has no neighbour of 2**63 below it that a clip could use, so the top is a case of its own.
    top, bottom = x >= float(info.max), x <= float(info.min)
    safe = select(top | bottom | np.isnan(x), 0.0, x).astype(dtype)
    return select(top, dtype(info.max), select(bottom, dtype(info.min), safe))


def saturate_integer(x: Value, dtype: Any) -> Value:
    """``cvt.sat`` between integer types."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    source = np.iinfo(x.dtype)
    return np.clip(x, max(low, source.min), min(high, source.max)).astype(dtype)


def flush(x: Value) -> Value:
    """``.ftz``: subnormal float32 to zero of the same sign."""
    return select(np.abs(x) < np.finfo(f32).tiny, np.copysign(f32(0), x), x)


def saturate(x: Value) -> Value:
    """``.sat``: clamp to [0, 1], NaN to +0."""
    return np.fmin(np.fmax(x, x.dtype.type(0)), x.dtype.type(1))


def fma32(a: Value, b: Value, c: Value) -> Value:
    """float32 fused multiply-add through float64: the product is exact, the sum is rounded twice.

    The second rounding differs from a true fma in about one case of 2**29.
    """
    return (a.astype(f64) * b + c).astype(f32)


def _two_sum(a: Value, b: Value) -> tuple[Value, Value]:
    """``a + b`` rounded, and what the rounding dropped (Knuth)."""
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def fma64(a: Value, b: Value, c: Value) -> Value:
    """float64 fused multiply-add: product and sum with their errors (Dekker, Knuth), added at the end."""
    splitter = f64(2**27 + 1)
    product = a * b
    x, y = splitter * a, splitter * b
    x_high, y_high = x - (x - a), y - (y - b)
    x_low, y_low = a - x_high, b - y_high
    error = ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low
    total, dropped = _two_sum(product, c)
    result = total + (dropped + error)
    return select(np.isfinite(result), result, product + c)  # the splitting overflows early


def add_to_odd(a: Value, b: Value) -> Value:
    """float64 sum rounded to odd: a second rounding to fewer bits then sees whether anything was dropped."""
    total, dropped = _two_sum(a, b)
    bits = np.asarray(total).view(u64)
    inexact = np.isfinite(dropped) & (dropped != 0) & ((bits & u64(1)) == 0)
    towards = np.where(dropped > 0, np.inf, -np.inf)
    return np.where(inexact, np.nextafter(total, towards), total)[()]


def round_to_f32(x: Value, mode: str) -> Value:
    """float64 -> float32 with a directed rounding (``rz``, ``rm``, ``rp``) or to nearest."""
    y = x.astype(f32)
    if mode == "rn":
        return y
    exact = y.astype(f64)
    down = (exact > x) & ((mode == "rm") | ((mode == "rz") & (x > 0)))
    up = (exact < x) & ((mode == "rp") | ((mode == "rz") & (x < 0)))
    y = select(down, np.nextafter(y, f32(-np.inf)), y)
    return select(up, np.nextafter(y, f32(np.inf)), y)


def upper_word(x: Value) -> Value:
    """float64 with a low word of zero, subnormals flushed: what ``rcp.approx.ftz.f64`` reads and returns."""
    cut = (x.view(u64) & u64(0xFFFFFFFF00000000)).view(f64)
    return select(np.abs(cut) < np.finfo(f64).tiny, np.copysign(f64(0), cut), cut)


def float_to_half(x: Value, mode: str = "rn") -> Value:
    """float32 or float64 -> the bits of a float16."""
    h = x.astype(f16)
    if mode == "rz":
        away = np.abs(h.astype(x.dtype)) > np.abs(x)  # rounded away from zero, infinity included
        return select(away, h.view(u16) - u16(1), h.view(u16))
    return h.view(u16)


def float_to_bfloat(x: Value, mode: str = "rn") -> Value:
    """float32 or float64 -> the bits of a bfloat16."""
    if x.dtype == f64:  # to odd first, so that the second rounding sees what the first one dropped
        y = round_to_f32(x, "rz")
        x = select((y.astype(f64) != x) & ~np.isnan(x), y.view(u32) | u32(1), y.view(u32)).view(f32)
    bits = x.view(u32)
    if mode == "rn":
        bits = bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))
    return select(np.isnan(x), u16(0x7FFF), (bits >> u32(16)).astype(u16))


def half_to_float(h: Value) -> Value:
    """Bits of a float16 -> float32."""
    return h.view(f16).astype(f32)


def bfloat_to_float(h: Value) -> Value:
    """Bits of a bfloat16 -> float32."""
    return (h.astype(u32) << u32(16)).view(f32)


def float_to_tf32(x: Value, mode: str = "rna") -> Value:
    """``cvt.rna.tf32`` (ties away), ``.rn`` (ties to even) and ``.rz``: the low 13 bits become zero."""
    bits = x.view(u32)
    bias = {"rna": u32(0x1000), "rz": u32(0)}.get(mode)
    if bias is None:
        bias = u32(0xFFF) + ((bits >> u32(13)) & u32(1))
    special = (bits & u32(0x7F800000)) == u32(0x7F800000)
    return select(special, bits, (bits + bias) & u32(0xFFFFE000))


def unpack_pair(x: Value) -> Value:
    """Registers of two 16-bit halves -> one array with the halves of each lane next to each other."""
    return np.ascontiguousarray(x).reshape(-1).view(u16)


def map_pairs(function: Callable[..., Value], decode: Any, encode: Any, *operands: Value) -> Value:
    """Apply a float function to ``f16x2`` or ``bf16x2`` registers."""
    lanes = max(np.size(x) for x in operands)
    halves = []
    for x in operands:
        h = unpack_pair(x)
        halves.append(decode(np.tile(h, lanes) if h.size < 2 * lanes else h))
    result = encode(function(*halves)).view(u32)
    return result if any(np.ndim(x) for x in operands) else result[0]


def pack(values: tuple[Value, ...], dtype: Any) -> Value:
    """``mov.b32 %r, {lo, hi}``: join unsigned parts, the first one lowest."""
    bits = 8 * values[0].dtype.itemsize
    result = values[0].astype(dtype)
    for i, value in enumerate(values[1:], 1):
        result = result | (value.astype(dtype) << dtype(bits * i))
    return result


def lop3(a: Value, b: Value, c: Value, table: int) -> Value:
    """Any bitwise function of three operands, by its truth table."""
    result = u32(0)
    for i in range(8):
        if table >> i & 1:
            result = result | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return result


def permute_bytes(a: Value, b: Value, selector: Value) -> Value:
    """``prmt`` in its default mode; bit 3 of a selector nibble replicates the sign of the byte."""
    both = a.astype(u64) | (b.astype(u64) << u64(32))
    result = u32(0)
    for i in range(4):
        nibble = (selector >> u32(4 * i)) & u32(15)
        byte = (both >> (u64(8) * (nibble & u32(7)).astype(u64))).astype(u32) & u32(255)
        sign = select((byte & u32(128)) != 0, u32(255), u32(0))
        result = result | (select((nibble & u32(8)) != 0, sign, byte) << u32(8 * i))
    return result


def population_count(x: Value) -> Value:
    """Number of set bits."""
    return np.bitwise_count(x).astype(u32)


def _bit_length(x: Value) -> Value:
    length = u32(0)
    for shift in (32, 16, 8, 4, 2, 1):  # binary search; exact for 64 bits, where a float would round
        if shift < 8 * x.dtype.itemsize:
            high = (x >> x.dtype.type(shift)) != 0
            length = length + select(high, u32(shift), u32(0))
            x = select(high, x >> x.dtype.type(shift), x)
    return length + (x != 0).astype(u32)


def count_leading_zeros(x: Value) -> Value:
    """``clz`` of an unsigned operand."""
    return u32(8 * x.dtype.itemsize) - _bit_length(x)


def find_leading_bit(x: Value, as_shift: bool) -> Value:
    """``bfind``: position of the highest bit that differs from the sign; all ones if there is none."""
    bits = 8 * x.dtype.itemsize
    magnitude = select(x < 0, ~x, x).view(UNSIGNED[x.dtype.itemsize]) if x.dtype.kind == "i" else x
    position = _bit_length(magnitude) - u32(1)
    if as_shift:
        position = select(magnitude == 0, position, u32(bits - 1) - position)
    return position


def reverse_bits(x: Value) -> Value:
    """``brev``."""
    dtype = x.dtype.type
    bits = 8 * x.dtype.itemsize
    shift = bits // 2
    mask = (1 << bits) - 1
    while shift:
        mask ^= (mask << shift) & ((1 << bits) - 1)
        x = ((x >> dtype(shift)) & dtype(mask)) | ((x & dtype(mask)) << dtype(shift))
        shift //= 2
    return x


def extract_field(a: Value, position: Value, length: Value) -> Value:
    """``bfe`` of 32 bits; if ``a`` is signed, the field's top bit fills what lies above it or beyond bit 31."""
    start, width = np.minimum(position & u32(255), u32(32)), np.minimum(length & u32(255), u32(32))
    bits = a.view(u32)
    mask = (u64(1) << np.minimum(width, u32(32) - start).astype(u64)) - u64(1)
    field = (bits.astype(u64) >> start.astype(u64)) & mask
    if a.dtype.kind == "i":
        last = np.minimum(start + width - u32(1), u32(31))
        negative = ((bits >> last) & u32(1)).astype(np.bool_) & (width > 0)
        field = select(negative, field | ~mask, field)
    return field.astype(u32)


def insert_field(a: Value, b: Value, position: Value, length: Value) -> Value:
    """``bfi`` of 32 bits: the low bits of ``a`` into ``b``."""
    start = np.minimum(position & u32(255), u32(32)).astype(u64)
    width = np.minimum(length & u32(255), u32(32)).astype(u64)
    mask = ((u64(1) << width) - u64(1)) << start
    return ((b.astype(u64) & ~mask) | ((a.astype(u64) << start) & mask)).astype(u32)


def funnel_shift(low: Value, high: Value, amount: Value, left: bool, clamp: bool) -> Value:
    """``shf``: shift the 64-bit pair and keep one half."""
    amount = np.minimum(amount, u32(32)) if clamp else amount & u32(31)
    both, amount = (high.astype(u64) << u64(32)) | low.astype(u64), amount.astype(u64)
    return ((both << amount) >> u64(32)).astype(u32) if left else (both >> amount).astype(u32)


def dot4(a: Value, b: Value, c: Value, a_type: Any, b_type: Any) -> Value:
    """``dp4a``: four 8-bit products added to ``c``, modulo 2**32."""
    result = c.view(i32)
    for i in range(4):
        x = (a >> u32(8 * i)).astype(u8).view(a_type)
        y = (b >> u32(8 * i)).astype(u8).view(b_type)
        result = result + x.astype(i32) * y.astype(i32)
    return result.view(u32)


def dot2(a: Value, b: Value, c: Value, a_type: Any, b_type: Any, high: bool) -> Value:
    """``dp2a``: two 16-bit halves of ``a`` times two bytes of ``b`` (the upper two if ``high``), added to ``c``."""
    result = c.view(i32)
    for i in range(2):
        x = (a >> u32(16 * i)).astype(u16).view(a_type)
        y = (b >> u32(8 * i + 16 * high)).astype(u8).view(b_type)
        result = result + x.astype(i32) * y.astype(i32)
    return result.view(u32)
