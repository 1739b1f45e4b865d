"""Tiny PTX kernels for the tests: one instruction per thread, operands from arrays."""

import ml_dtypes
import numpy as np

from gpu_conv.emulator import Emulator

DTYPES = {
    "pred": np.uint32,
    **{f"{s}{n}": np.dtype(f"{'i' if s == 's' else 'u'}{n // 8}") for s in "bus" for n in (8, 16, 32, 64)},
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f32": np.float32,
    "f64": np.float64,
    **dict.fromkeys(("f16x2", "bf16x2", "tf32"), np.uint32),
}
HEADER = ".version 8.8\n.target sm_90\n.address_size 64\n"


def bits(kind):
    """Width of a register that holds a PTX type."""
    return max(16, 8 * np.dtype(DTYPES[kind]).itemsize)


def module(body, parameters, declarations="", entry="k"):
    """A module with one kernel; parameters are (type, name) or (text, name) for structs."""
    listed = ",\n".join(f".param .{kind} {name}" for kind, name in parameters)
    return f"{HEADER}{declarations}\n.visible .entry {entry}({listed})\n{{\n{body}\n}}\n"


def apply(instruction, inputs, kinds, out_kind, *, uniform=()):
    """Run one instruction per lane.

    Args:
        instruction: with {d} for the destination and {a} {b} {c} {e} for the operands.
        inputs: arrays of equal length n, one per operand.
        kinds: PTX types of the operands; ``pred`` takes 0 and 1.
        out_kind: PTX type of the result.
        uniform: operands of which every lane gets element 0, through a uniform address (NumPy scalars inside).
    """
    lines = [".reg .b32 %tid; .reg .b64 %rd<20>; mov.u32 %tid, %tid.x;"]
    names = {}
    for i, (kind, letter) in enumerate(zip(kinds, "abce", strict=False)):
        width = np.dtype(DTYPES[kind]).itemsize
        step = 0 if i in uniform else width
        register = f"%{letter}x"
        lines.append(f".reg .b{bits(kind)} {register}; ld.param.u64 %rd{i}, [p{i}]; mul.wide.u32 %rd9, %tid, {step};")
        if step:
            lines.append(f"add.s64 %rd{i}, %rd{i}, %rd9;")
        lines.append(f"ld.global.b{8 * width} {register}, [%rd{i}];")
        if kind == "pred":
            lines.append(f".reg .pred %{letter}p; setp.ne.u32 %{letter}p, {register}, 0;")
            register = f"%{letter}p"
        names[letter] = register
    out_type = DTYPES[out_kind]
    width = np.dtype(out_type).itemsize
    lines.append(f".reg .{'pred' if out_kind == 'pred' else f'b{bits(out_kind)}'} %dx;")
    lines.append(instruction.format(d="%dx", **names) + ";")
    lines.append(f"ld.param.u64 %rd8, [po]; mul.wide.u32 %rd9, %tid, {width}; add.s64 %rd8, %rd8, %rd9;")
    if out_kind == "pred":
        lines.append(".reg .b32 %dr; selp.u32 %dr, 1, 0, %dx; st.global.b32 [%rd8], %dr;")
    else:
        lines.append(f"st.global.b{8 * width} [%rd8], %dx;")
    text = module("\n".join(lines), [*(("u64", f"p{i}") for i in range(len(kinds))), ("u64", "po")])
    arrays = [np.ascontiguousarray(x, DTYPES[k]) for x, k in zip(inputs, kinds, strict=True)]
    out = np.zeros(len(arrays[0]), out_type)
    Emulator().execute(text, "k", 1, len(out), [*arrays, out], outputs=[len(arrays)])
    return out


def run(body, args, *, threads=32, grid=1, declarations="", outputs=(), shared=0, registers="", **options):
    """Run a kernel body whose parameters p0, p1, ... are 64-bit pointers in %p0, %p1, ... and threads in %tid."""
    loads = "".join(f"ld.param.u64 %p{i}, [p{i}]; " for i in range(len(args)))
    head = f".reg .b64 %p<{len(args) + 1}>; .reg .b32 %tid; {registers}\nmov.u32 %tid, %tid.x; {loads}\n"
    text = module(head + body, [("u64", f"p{i}") for i in range(len(args))], declarations)
    emulator = Emulator(**{"strict": False, **options})
    return emulator.execute(text, "k", grid, threads, args, shared, outputs=outputs)
