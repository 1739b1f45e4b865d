"""One convolution through one row of the table in the emulator, against float64. Shared by the kernels' tests."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import ml_dtypes  # noqa: F401  (makes np.dtype("bfloat16") a name)
import numpy as np
import pytest

from gpu_conv import arguments, emulator, layout, reference
from gpu_conv.cuda import compiler, source
from gpu_conv.launch import Launch, Target
from gpu_conv.problem import ConvProblem
from gpu_conv.testing.tolerance import assert_close

ARCHES = ("sm_80", "sm_120")  # the two PTX dialects
# One multiprocessor: small problems are then planned like large ones.
TARGETS = {
    "sm_80": Target("sm_80", 1, 163 * 1024),
    "sm_90a": Target("sm_90a", 1, 227 * 1024),
    "sm_120": Target("sm_120", 1, 99 * 1024),
}
GUARD = 64  # elements before and after the output that must not change


def numbers(shape, dtype, rng, exact):
    """Small integers whose sums are exact in every dtype, or normal numbers."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(max(info.min, -100), min(info.max, 100), shape, endpoint=True).astype(dtype)
    values = rng.integers(-2, 2, shape, endpoint=True) if exact else rng.standard_normal(shape)
    return values.astype(dtype)


def arrays(dtype, channels, groups, multiplier, size, taps, *, batch=2, last=False, w_layout=None, exact=True, seed=0):
    """x with ``channels`` per group, channels last or first, and w with ``multiplier`` outputs per group."""
    rng = np.random.default_rng(seed)
    w_axes = layout.filter_axes(w_layout or layout.default_filter(len(size), False), len(size))
    x = numbers((batch, groups * channels, *size), dtype, rng, exact)
    w = numbers((groups * multiplier, channels, *taps), dtype, rng, exact)
    x = np.moveaxis(x, 1, -1) if last else x
    return np.ascontiguousarray(x), np.ascontiguousarray(w.transpose(np.argsort(w_axes)))


def guarded(shape, dtype):
    """An output between guard elements, a function that fills it with NaN (or 77), and one that checks the guards."""
    fill = np.array(77 if np.dtype(dtype).kind in "iu" else np.nan, dtype)
    buffer = np.full(prod(shape) + 2 * GUARD, fill, dtype)
    before = buffer[:GUARD].tobytes()

    def clear():
        buffer[...] = fill

    def check():
        assert buffer[:GUARD].tobytes() == before, "written before the output"
        assert buffer[-GUARD:].tobytes() == before, "written after the output"

    return buffer[GUARD:-GUARD].reshape(shape), clear, check


@dataclass(frozen=True, eq=False)
class Case:
    """A convolution as one row plans it, to be run and compared as often as wanted (mutation testing does it often)."""

    problem: ConvProblem
    operands: dict[str, np.ndarray | None]
    launch: Launch
    target: str
    exact: bool
    clear: Callable[[], None]
    check_guards: Callable[[], None]

    def check(self):
        """Run with every check on, and compare."""
        self.clear()
        emulator.Emulator(self.target).run(self.launch, self.operands)
        self.check_guards()
        y = self.operands["y"]
        if self.exact:
            np.testing.assert_array_equal(y, reference.convolve(self.problem, self.operands).astype(y.dtype))
        else:
            assert_close(y, self.problem, self.operands)


def run(row, x, w, *, target="sm_80", bias=False, residual=False, exact=True, edit=None, seed=0, **options):
    """Run with every check on, compare, return the launch.

    Args:
        row: the row of the table; it must not refuse.
        x, w: arrays.
        target: architecture.
        bias: dtype of a bias to make up, or False.
        residual: whether to make one up.
        exact: the result must equal the reference, rounded once; otherwise the computed tolerance holds.
        edit: function of the launch, for what the planner would not choose at this size.
        options: of ``gpu_conv.conv``.
    """
    rng = np.random.default_rng(seed)
    probe = arguments.prepare(x, w, **options)
    shape, dtype = probe.result.shape, probe.result.dtype
    out, clear, check_guards = guarded(shape, dtype)
    if bias:
        options["bias"] = numbers((probe.problem.out_channels,), bias, rng, exact)
    if residual:
        options["residual"] = numbers(shape, dtype, rng, exact)
    call = arguments.prepare(x, w, out=out, **options)
    refusal = row.refuses(call.problem, TARGETS[target])
    assert refusal is None, refusal
    launch = row.plan(call.problem, TARGETS[target])
    if edit:
        launch = edit(launch)
    Case(call.problem, call.operands, launch, target, exact, clear, check_guards).check()
    return launch


def problem(x, w, **options):
    return arguments.prepare(x, w, **options).problem


# numeric types as the headers spell them
CTYPES = {"int32": "int32", "int64": "int64", "float64": "double", "float32": "float"}


def assert_params_match(file, params):
    """The fields of a packed struct against the text of the header: names, types, lengths and order."""
    name = params.metadata["name"]
    body = re.search(rf"struct {name} {{(.*?)\n}};", source.load(file), re.DOTALL)[1]
    found = re.findall(r"^\s*(\w+) (\w+)(?:\[(\d+)\])?;", body, re.MULTILINE)
    wanted = []
    for field in params.names:
        base, shape = params[field].subdtype or (params[field], ())
        wanted.append((CTYPES[base.name], field, str(shape[0]) if shape else ""))
    assert found == wanted
    size = re.search(rf"static_assert\(sizeof\({name}\) == (\d+)", source.load(file))
    assert int(size[1]) == params.itemsize


def plant(monkeypatch, file, old, new):
    """Break one place of a kernel's source."""
    text = source.load(file)
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
    broken = text.replace(old, new)
    monkeypatch.setattr(compiler, "load", lambda name, *_: broken if name == file else pytest.fail(name))


def assert_lean(launches, archs):
    """No spills and no local memory."""
    for launch in launches:
        for arch in archs:
            compiled = compiler.compile_launch(launch, arch)
            assert not compiled.spill_bytes, (launch.name_expression, arch, compiled.registers)
            assert not compiled.local_bytes, (launch.name_expression, arch, compiled.registers)
            assert not compiled.warnings, compiled.warnings
