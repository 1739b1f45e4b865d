"""A problem and a device -> something that runs: the NumPy engine, or a kernel launch on CuPy or in the emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from .arguments import Call, View
from .launch import Launch, Target
from .problem import ConvProblem

if TYPE_CHECKING:
    from . import cpu, dispatch
    from .cpu.chain import Chain
    from .cuda.device import Ready

DEVICES = ("cpu", "cuda", "emulator")

Run = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Recorder:
    """A device that plans every convolution for a GPU and computes none: results are zeros.

    Attributes:
        target: the GPU planned for.
        launches: what it would have run, in order.
    """

    target: Target
    launches: list[Launch] = field(default_factory=list)

    def record(self, launch: Launch, operands: Mapping[str, Any]) -> None:
        """Instead of running it."""
        self.launches.append(launch)
        operands["y"].fill(0)

    def prepare(self, problem: ConvProblem, kernel: str | None) -> Run:
        """Plan once; a run records the plan."""
        from . import choices, dispatch

        steps = dispatch.steps(problem, self.target, kernel, choices.current())

        def run(operands: Mapping[str, Any]) -> None:
            self.launches.extend(step.launch for step in steps)
            operands["y"].fill(0)

        return run


Device = str | Recorder

_instead: ContextVar[Device] = ContextVar("gpu_conv_device_of_numpy_arrays", default="cpu")


@contextmanager
def instead(device: Device) -> Iterator[None]:
    """In this block, NumPy arrays are computed here where a call names no device; a ``Recorder`` is an emulator too."""
    token = _instead.set(device)
    try:
        yield
    finally:
        _instead.reset(token)


def device_of(library: str, device: str | None) -> Device:
    """The device that computes for arrays of a library: "cpu", "cuda", "emulator" or a ``Recorder``.

    Raises:
        ValueError: unknown name.
        TypeError: arrays of the wrong kind for the named device.
    """
    if library == "numpy" and (device is None or (device == "emulator" and isinstance(_instead.get(), Recorder))):
        return _instead.get()
    if device is None:
        return "cuda"
    if device not in DEVICES:
        raise ValueError(f"device must be None or one of {', '.join(DEVICES)}, got {device!r}")
    needed = "cupy" if device == "cuda" else "numpy"
    if library != needed:
        raise TypeError(f"device={device!r} computes on {needed} arrays, got {library} arrays")
    return device


def target(device: str, arch: str | None = None) -> Target:
    """The GPU that launches are planned for: the current one, the emulator's, or a known one by architecture."""
    if arch is None and device == "cuda":
        from .cuda import device as cuda_device

        return cuda_device.target()
    from . import emulator
    from .cuda.targets import KNOWN_TARGETS

    wanted = arch or emulator.DEFAULT_ARCH
    if wanted not in KNOWN_TARGETS:
        raise ValueError(f"arch={wanted!r} is unknown; known are {', '.join(KNOWN_TARGETS)}")
    return KNOWN_TARGETS[wanted]


def target_of(device: Device) -> Target:
    """The GPU that launches are planned for on a device that is not the CPU."""
    return device.target if isinstance(device, Recorder) else target(device)


def launched(launch: Launch, device: Device) -> Run:
    """A function of the operands that runs one launch, on a device that is not the CPU."""
    if isinstance(device, Recorder):
        return partial(device.record, launch)
    if device == "cuda":
        from .dispatch import Step

        return _OnCuda((Step(launch),))
    return partial(_emulator_run(), launch)


def check_on_cpu(kernel: str | None, arch: str | None = None) -> None:
    """Raises ValueError for what only a GPU has."""
    if kernel is not None:
        raise ValueError(f"kernel={kernel!r} names a CUDA kernel; NumPy arrays need device='emulator' for it")
    if arch is not None:
        raise ValueError(f"arch={arch!r} is a GPU's; it does not go with device='cpu'")


def prepare(call: Call, device: Device, kernel: str | None = None) -> Run:
    """A function of the operands that writes ``y``; it may be called again with others of the same problem.

    The filter and bias may be packed here, so later calls must bring the same ones.
    """
    problem = call.problem
    if isinstance(device, Recorder):
        return device.prepare(problem, kernel)
    if device == "cpu":
        from . import cpu

        check_on_cpu(kernel)
        w: Any = call.operands["w"]
        return _OnCpu(cpu.prepare(problem, w, call.operands["bias"], call.operands["w_zero_point"]))
    from . import choices, dispatch

    steps = dispatch.steps(problem, target(device), kernel, choices.current())
    if device == "cuda":
        return _OnCuda(steps)
    launch = _emulator_run()

    def run(operands: Mapping[str, Any]) -> None:
        for step in steps:
            launch(step.launch, step.operands(operands))

    return run


def chained(calls: Sequence[Call]) -> Run | None:
    """A function of the first's ``x`` and the last's ``y`` as the user has them; None where three calls do as well."""
    from .cpu import chain

    layers: list[Any] = [(call.problem, call.operands["w"], call.operands["bias"]) for call in calls]
    return None if chain.refuses(layers) else _ChainOnCpu(chain.Chain(layers), calls[0].x_view, calls[-1].y_view)


def bind(run: Run, operands: Mapping[str, Any]) -> Callable[[], None]:
    """``run`` with its operands fixed: they are looked at only once."""
    return run.bind(operands) if isinstance(run, (_OnCpu, _ChainOnCpu, _OnCuda)) else partial(run, operands)


class _OnCpu:
    def __init__(self, prepared: cpu.Prepared) -> None:
        self._prepared = prepared

    def __call__(self, o: Mapping[str, Any]) -> None:
        self._prepared.run(o["x"], o["y"], o["residual"], o["x_zero_point"])

    def bind(self, o: Mapping[str, Any]) -> Callable[[], None]:
        return self._prepared.bind(o["x"], o["y"], o["residual"], o["x_zero_point"])


@dataclass(frozen=True)
class _ChainOnCpu:
    chain: Chain
    x_view: View
    y_view: View

    def __call__(self, o: Mapping[str, Any]) -> None:
        self.bind(o)()

    def bind(self, o: Mapping[str, Any]) -> Callable[[], None]:
        return self.chain.bind(self.x_view(o["x"]), self.y_view(o["y"]))


class _OnCuda:
    """Launches on CuPy arrays.

    Attributes:
        by_address: whether a kernel gets the addresses of the operands as they are, so that any view of them will do.
    """

    def __init__(self, steps: tuple[dispatch.Step, ...]) -> None:
        from .cuda import device

        self._ready = device.ready
        self._steps = steps
        self._launches: dict[int, tuple[Ready, ...]] = {}
        self.by_address = all(step.phase is None for step in steps)

    def __call__(self, operands: Mapping[str, Any]) -> None:
        for launch, step in zip(self._on(operands["y"].data.device_id), self._steps, strict=True):
            launch(step.operands(operands))

    def bind(self, operands: Mapping[str, Any]) -> Callable[[], None]:
        pairs = zip(self._on(operands["y"].data.device_id), self._steps, strict=True)
        bound = [launch.bind(step.operands(operands)) for launch, step in pairs]

        def run() -> None:
            for launch in bound:
                launch()

        return bound[0] if len(bound) == 1 else run

    def _on(self, device_id: int) -> tuple[Ready, ...]:
        found = self._launches.get(device_id)
        if found is None:
            found = tuple(self._ready(step.launch, device_id) for step in self._steps)
            self._launches[device_id] = found
        return found


def _emulator_run() -> Callable[[Launch, Mapping[str, Any]], None]:
    from . import emulator

    def run(launch: Launch, operands: Mapping[str, Any]) -> None:
        emulator.run(launch, operands)

    return run
