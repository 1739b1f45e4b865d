"""``tune``: time every kernel and tile that could run a convolution on the GPU that is here, and keep the fastest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from . import choices, execute, stand_in
from .choices import Choice
from .launch import Launch, Target
from .problem import ConvProblem

Call = Callable[[], object]
Timer = Callable[[Sequence[Call]], float]

# Two timings of one graph differ by less than 1 % (the 20th and 80th percentiles of the recorded layers): the table's
# choice gives way to what is clearly faster only.
MARGIN = 0.02


def tune(
    x: Any,
    w: Any = None,
    bias: Any = None,
    *,
    transposed: bool = False,
    dtype: Any = "float32",
    dims: Mapping[str, int] | None = None,
    most: int = 8,
    path: str | os.PathLike[str] | None = None,
    timer: Timer | None = None,
    device: str = "cuda",
    arch: str | None = None,
    report: Callable[[str], None] = lambda step: None,
    **options: Any,
) -> list[Choice]:
    """Measure the candidates for a layer or for all convolutions of a model, and write the fastest to a file.

    Nothing reads that file unless asked: ``with gpu_conv.tuned(path): ...``. Candidates are the rows of the dispatch
    table that take the problem, each with the tiles of its family. All give the table's result on small integers, or
    they are left out; all compute with the problem's own ``precision``.

    Args:
        x, w, bias: arrays of a layer, or their shapes as tuples (then of ``dtype``). Without ``w``, ``x`` is an ONNX
            model (path, bytes, ``onnx.ModelProto``), or a function without arguments that convolves NumPy arrays of the
            shapes and dtypes that will later be CuPy's. So it is for a ``Conv``: it packs its filter, and is another
            problem than a call of ``conv`` with the same arrays.
        transposed: the layer is a :func:`gpu_conv.conv_transpose`.
        dtype: element type where shapes are given.
        dims: sizes of the open axes of the model's inputs, by name. Axis 0 is 1 without it.
        most: tiles per family, the best predicted first.
        path: the JSON file; choices for other problems of the same device stay in it. Without it, a file in the cache
            folder named after the device.
        timer: gets calls that all do the same work, one for each set of operands, and returns the microseconds of one;
            by default replays of a CUDA graph, medians, with operands that exceed the L2 cache.
        device: "cuda", or "emulator", which needs a ``timer`` of its own.
        arch: of the emulator.
        report: called with a line of text before every step that takes time.
        **options: of :func:`gpu_conv.conv`, for a layer.

    Returns:
        One choice per different problem, in the order of their first use.

    Raises:
        CudaUnavailable: there is no CUDA device, or no NVRTC.
        ValueError, TypeError: what the convolution itself would raise; a path that holds something else.

    Example:
        >>> import gpu_conv
        >>> gpu_conv.tune((32, 144, 56, 56), (144, 1, 3, 3), groups=144, padding=1)  # doctest: +SKIP
    """
    if device not in ("cuda", "emulator"):
        raise ValueError(
            f"device must be 'cuda' or 'emulator', got {device!r}: the NumPy engine has no kernels to choose"
        )
    if device == "emulator" and timer is None:
        raise ValueError("the emulator has no clock: give a timer, or tune on device='cuda'")
    target = execute.target(device, arch)
    problems = _problems(_program(x, w, bias, transposed, dtype, dims or {}, options), target)
    file = Path(path) if path is not None else choices.default_path(target)
    bench = _Bench(target, device, timer)
    head = choices.stamp(target, bench.driver(), _nvrtc_version())
    kept = {_text(entry["problem"]): entry for entry in choices.start(file, head)}
    plans = [candidates(problem, target, most) for problem in problems]
    total, found = sum(map(len, plans)), []
    numbers = count(1)
    for problem, plan in zip(problems, plans, strict=True):
        choice = bench.contest(problem, plan, lambda step: report(f"{next(numbers)} of {total}: {step}"))
        found.append(choice)
        kept[_text(choice.problem)] = asdict(choice)
        choices.write(file, head, list(kept.values()))  # an interrupted run keeps what it has
    return found


def _text(signature: Mapping[str, Any]) -> str:
    import json

    return json.dumps(signature, sort_keys=True)


def _nvrtc_version() -> str:
    from .cuda import compiler

    return compiler.nvrtc_version()


# ------------------------------------------------------------------------------------------------------ which problems


@dataclass(frozen=True, eq=False)
class _Problems(execute.Recorder):
    """A device that remembers what it should compute and computes nothing."""

    problems: list[ConvProblem] = field(default_factory=list)

    def prepare(self, problem: ConvProblem, kernel: str | None) -> execute.Run:
        if kernel is None:  # where one is forced there is nothing to choose
            self.problems.append(problem)
        return super().prepare(problem, kernel)


def _program(
    x: Any, w: Any, bias: Any, transposed: bool, dtype: Any, dims: Mapping[str, int], options: Mapping[str, Any]
) -> Call:
    """What convolves NumPy arrays like those of the user."""
    if w is not None:
        from . import ops

        function = ops.conv_transpose if transposed else ops.conv
        arrays = [None if a is None else _like(np.zeros, a, dtype) for a in (x, w, bias)]
        # Ones: a zero point of zero would be none.
        given = {k: _like(np.ones, v, dtype) if hasattr(v, "dtype") else v for k, v in options.items()}
        return lambda: function(*arrays, **given)
    if options:
        raise TypeError(f"{', '.join(options)}: options belong to a layer; a model or a function brings its own")
    if callable(x):
        return lambda: x()
    from . import onnx
    from .warm import stand_ins

    model = onnx.load(x, device="emulator")  # planned as for a GPU; the recorder takes its calls
    inputs = stand_ins(model, dims)
    return lambda: model(inputs)


def _like(fill: Callable[..., Any], array: Any, dtype: Any) -> Any:
    """A NumPy array for an array of another library, of which the values do not count, or for a shape."""
    if isinstance(array, (np.ndarray, np.generic)):
        return array
    return fill(array.shape, np.dtype(str(array.dtype))) if hasattr(array, "dtype") else fill(array, np.dtype(dtype))


def _problems(program: Call, target: Target) -> list[ConvProblem]:
    """The different problems that the program launches, the phases of a dilated input one by one."""
    from . import dispatch

    recorder = _Problems(target)
    with execute.instead(recorder):
        program()
    found: dict[ConvProblem, None] = {}
    for problem in recorder.problems:
        for step in dispatch.steps(problem, target):
            single = problem if step.phase is None else step.phase.problem
            if single.y.size and single.taps:
                found[single] = None
    return list(found)


# ---------------------------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True)
class Candidate:
    """One way to run a problem; without a tile, the family's own."""

    kernel: str
    tile: Any
    launch: Launch

    def facts(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "tile": self.tile and self.tile._asdict()}

    def __str__(self) -> str:
        tile = self.tile and " ".join(str(int(v)) for v in self.tile)
        return f"{self.kernel} {tile}" if tile else self.kernel


def candidates(problem: ConvProblem, target: Target, most: int = 8) -> list[Candidate]:
    """Every different launch: the table's choice first, then the other rows, each with at most ``most`` tiles."""
    from . import dispatch

    first = dispatch.select(problem, target)
    rows = [first, *(row for row in dispatch.TABLE if row is not first and row.refuses(problem, target) is None)]
    found: dict[Launch, Candidate] = {}
    for row in rows:
        own = row.plan(problem, target)
        found.setdefault(own, Candidate(row.name, None, own))
        for tile in list(row.tiles(problem, target))[:most]:
            launch = row.plan(problem, target, tile)
            found.setdefault(launch, Candidate(row.name, tile, launch))
    return list(found.values())


# --------------------------------------------------------------------------------------------------------- measurement


class _Bench:
    """The device on which candidates compete."""

    def __init__(self, target: Target, device: str, timer: Timer | None) -> None:
        self.target, self.device = target, device
        self.timer = timer or _graph_timer
        self.xp: Any
        self.bind: Callable[[Launch, Mapping[str, Any]], Call]
        if device == "cuda":
            from .cuda import device as cuda_device

            self.xp = cuda_device.cupy()
            here = self.xp.cuda.runtime.getDevice()
            self.bind = lambda launch, arrays: cuda_device.ready(launch, here).bind(arrays)  # as a layer's replay
        else:
            from .emulator import Emulator

            self.xp = np
            self.bind = partial(partial, Emulator(target.arch).run)

    def driver(self) -> str | None:
        """The newest CUDA that the driver knows, ``"13.0"``; None in the emulator."""
        if self.device != "cuda":
            return None
        version = self.xp.cuda.runtime.driverGetVersion()
        return f"{version // 1000}.{version % 1000 // 10}"

    def contest(self, problem: ConvProblem, plan: Sequence[Candidate], report: Callable[[str], None]) -> Choice:
        """The fastest candidate; the first is the table's choice, which the others must agree with."""
        self._compile(plan)
        sets = stand_in.operand_sets(problem, self.xp, self._sets(problem))
        tried: list[dict[str, Any]] = []
        wanted: Any = None
        for candidate in plan:
            report(f"{problem}: {candidate}")
            facts = candidate.facts()
            try:
                result = self._result(candidate.launch, sets[0])
                if wanted is not None and not bool((result == wanted).all()):
                    facts["error"] = "its result differs from that of the table's choice"
                else:
                    calls = [self.bind(candidate.launch, operands.arrays) for operands in sets]
                    facts["us"] = round(float(self.timer(calls)), 3)
            except RuntimeError as error:  # a kernel that does not compile or launch here is no candidate
                facts["error"] = f"{type(error).__name__}: {error}"[:300]
            if not tried:
                if "error" in facts:
                    raise RuntimeError(f"{candidate} does not run {problem}: {facts['error']}")
                wanted = result
            tried.append(facts)
        return _choice(problem, tried)

    def _compile(self, plan: Sequence[Candidate]) -> None:
        """All at a time, as many as there are processors; what fails fails again, by itself, where it is used."""
        from .cuda import CompileError, compiler

        if self.device != "cuda":
            return
        with suppress(CompileError):
            compiler.warm([candidate.launch for candidate in plan], self.target.arch)

    def _sets(self, problem: ConvProblem) -> int:
        if self.device != "cuda":
            return 1
        from .cuda import timing

        return timing.operand_sets(problem.bytes, most=64)

    def _result(self, launch: Launch, operands: stand_in.Operands) -> Any:
        operands.spoil()
        self.bind(launch, operands.arrays)()
        return operands.written.copy()


def _graph_timer(calls: Sequence[Call]) -> float:
    from .cuda import timing

    return timing.measure(calls).us


def _choice(problem: ConvProblem, tried: Iterable[dict[str, Any]]) -> Choice:
    table, *others = tried
    best = min((facts for facts in others if "us" in facts), key=lambda facts: facts["us"], default=table)
    chosen = best if best["us"] < table["us"] * (1 - MARGIN) else table
    rest = [facts for facts in (table, *others) if facts is not chosen]
    return Choice(
        summary=str(problem),
        problem=choices.signature(problem),
        kernel=chosen["kernel"],
        tile=chosen["tile"],
        us=chosen["us"],
        table_us=table["us"],
        tried=rest,
    )
