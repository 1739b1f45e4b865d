"""The front end: arguments in, report out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cuda.targets import KNOWN_TARGETS
from ..launch import POINTERS, Launch, TensorMap
from .counters import Counters, Traffic
from .errors import Stopped
from .ir import Parameter
from .lanes import WARP
from .machine import LaunchState, Machine
from .memory import AddressSpace, Allocation
from .order import LaunchOrder
from .program import Program, load_program
from .report import Coordinates, EmulationError, Recorder, Report
from .scheduler import Scheduler
from .tensor_map import encode

# Lanes that run together. Fewer make NumPy's overhead visible, more fall out of the cache.
CHUNK_LANES = 16384
Array = npt.NDArray[Any]
DEFAULT_ARCH = "sm_80"
_MAX_SHARED = 227 * 1024  # of any architecture
_SPOILT = 0xFF  # as bytes of a workspace: NaN in every floating-point type


class Emulator:
    """A GPU made of NumPy.

    Args:
        arch: what kernels are compiled for, as NVRTC spells it.
        checks: races, uninitialised reads and counters; without them only addresses and alignment are checked.
        seed: ``None`` runs blocks and warps in a fixed order; a number draws the order of blocks, the warp that
            runs next, the moment at which asynchronous copies land and the order of atomics from that seed.
        strict: raise :class:`EmulationError` if there is any finding.
    """

    def __init__(
        self, arch: str = DEFAULT_ARCH, checks: bool = True, seed: int | None = None, strict: bool = True
    ) -> None:
        self.arch = arch
        self.checks = checks
        self.seed = seed
        self.strict = strict
        self.last_report: Report | None = None

    def run(self, launch: Launch, operands: Mapping[str, Array | None]) -> Report:
        """Run a launch of this package on NumPy arrays; ``operands["y"]`` is written in place.

        Args:
            launch: what to run.
            operands: arrays by the names of ``launch.POINTERS``; absent or ``None`` is a null pointer. The kernel
                may touch the extent of each array and nothing else, write only ``y`` and its workspace, must write
                every element of ``y``, and leave the tickets of the workspace as it found them, zero.

        Raises:
            EmulationError: the kernel did something wrong.
            UnsupportedPtx: it uses an instruction that the emulator doesn't know.
        """
        from ..cuda import compiler

        unknown = operands.keys() - set(POINTERS)
        if unknown:
            raise ValueError(f"unknown operands {sorted(unknown)}; a kernel takes {', '.join(POINTERS)}")
        arrays = {name: operands.get(name) for name in POINTERS}
        if launch.workspace_bytes:
            arrays["workspace"] = workspace = np.full(launch.workspace_bytes, _SPOILT, np.uint8)
            workspace[: launch.ticket_bytes] = 0
        y = arrays["y"]
        if y is not None and not y.flags.writeable:
            raise ValueError("y is read-only")
        compiled = compiler.compile_launch(launch, self.arch.replace("sm_", "compute_"))
        return self._execute(
            load_program(compiled.ptx, compiled.lowered),
            launch.grid,
            launch.block,
            [*arrays.values(), launch.params, *launch.tensor_maps],
            launch.shared_bytes,
            names=[*POINTERS, "params", *(f"tensor map {i}" for i in range(len(launch.tensor_maps)))],
            outputs=(POINTERS.index("y"),),
            writable={POINTERS.index("y"), POINTERS.index("workspace")},
            title=launch.name_expression,
            tickets=launch.ticket_bytes,
        )

    def execute(
        self,
        ptx: str,
        entry: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Array | np.generic | int | float | bytes | TensorMap | None],
        shared_bytes: int = 0,
        *,
        outputs: Sequence[int] = (),
        names: Sequence[str] | None = None,
    ) -> Report:
        """Run any kernel.

        Args:
            ptx: text of the module.
            entry: mangled name of the kernel.
            grid, block: sizes in x, y, z; missing ones are 1.
            args: arrays become pointers to their element 0 (read-only if the array is), ``None`` a null pointer,
                ``bytes`` a struct, numbers are converted to the parameter's type; a ``TensorMap`` is encoded for the
                argument that ``names`` calls like its operand.
            shared_bytes: dynamic shared memory per block.
            outputs: positions of arrays that the kernel must write completely, and must not read before.
            names: what findings call the arguments.
        """
        program = load_program(ptx, entry)
        writable = {i for i, a in enumerate(args) if isinstance(a, np.ndarray) and a.flags.writeable}
        names = names or [p.name.rsplit("_param_", 1)[-1] for p in program.kernel.parameters]
        names = [n if not n.isdigit() else f"argument {n}" for n in names]
        return self._execute(program, grid, block, args, shared_bytes, names, outputs, writable, entry)

    def _execute(
        self, program: Program, grid: Any, block: Any, args: Sequence[Any], shared_bytes: int, names: Sequence[str],
        outputs: Sequence[int], writable: set[int], title: str, tickets: int = 0,
    ) -> Report:  # fmt: skip
        started = time.perf_counter()
        grid, block = _three(grid), _three(block)
        self._check_launch(program, grid, block, shared_bytes, len(args))
        space, recorder = AddressSpace(), Recorder(title)
        allocations: dict[int, Allocation] = {}
        parameters = {}
        for i, (parameter, value) in enumerate(zip(program.kernel.parameters, args, strict=True)):
            if isinstance(value, np.ndarray):
                initialised = i not in outputs or not self.checks
                allocations[i] = space.add(names[i], value, writable=i in writable, initialised=initialised)
                value = allocations[i].pointer
            elif isinstance(value, TensorMap):
                operand = allocations.get(list(names).index(value.operand))
                value = encode(value, operand.pointer if operand else 0)
            parameters[parameter.name] = _argument(parameter, value)
        random = None if self.seed is None else np.random.default_rng(self.seed)
        count = len(program.blocks)
        order = LaunchOrder(program.global_granule, program.has_fence)
        state = LaunchState(
            program=program, grid=grid, block=block, parameters=parameters, dynamic_shared=shared_bytes, space=space,
            recorder=recorder, checking=self.checks, random=random, order=order,
            block_threads=[0] * count, block_warps=[0] * count,
        )  # fmt: skip
        finished = self._run_chunks(state)
        for allocation in space.allocations:
            allocation.write_back()
        if self.checks and finished:
            for i in outputs:
                if i in allocations:
                    _check_written(recorder, allocations[i])
            if tickets and args[POINTERS.index("workspace")][:tickets].any():
                recorder.add("workspace", None, "tickets are not zero after the launch")
        report = Report(title, grid, block, _counters(state), recorder.findings, list(recorder.notes), self.seed)
        report.seconds = time.perf_counter() - started
        self.last_report = report
        if self.strict and not report.ok:
            raise EmulationError(str(report), report)
        return report

    def _run_chunks(self, state: LaunchState) -> bool:
        """False if the kernel had to be stopped."""
        threads = int(np.prod(state.block))
        blocks = np.arange(int(np.prod(state.grid)))
        if state.random is not None:
            state.random.shuffle(blocks)
        step = max(1, CHUNK_LANES // (-(-threads // WARP) * WARP))
        with np.errstate(all="ignore"):
            for first in range(0, len(blocks), step):
                machine = Machine(state, blocks[first : first + step])
                try:
                    Scheduler(machine).run()
                except Stopped as reason:
                    if not state.recorder.findings:
                        state.recorder.add("stopped", None, str(reason))
                    return False
                finally:
                    state.mma += machine.mma_count
                    state.macs += machine.macs
        return True

    def _check_launch(
        self, program: Program, grid: Coordinates, block: Coordinates, shared_bytes: int, arguments: int
    ) -> None:
        kernel = program.kernel
        threads = int(np.prod(block))
        limit = kernel.max_threads or 1024
        if not 0 < threads <= min(limit, 1024) or block[2] > 64:
            raise ValueError(f"block {block} has {threads} threads; {kernel.name} allows 1 to {limit}")
        if min(grid) < 1 or max(grid[1:]) > 65535 or grid[0] > 2**31 - 1:
            raise ValueError(f"grid {grid} is outside of 1..2147483647 x 1..65535 x 1..65535")
        if arguments != len(kernel.parameters):
            raise ValueError(f"{kernel.name} has {len(kernel.parameters)} parameters, got {arguments} arguments")
        target = KNOWN_TARGETS.get(self.arch)
        available = target.shared_per_block if target else _MAX_SHARED
        wanted = kernel.shared_bytes(shared_bytes)
        if wanted > available:
            raise ValueError(f"{wanted} bytes of shared memory; {self.arch} has {available} per block")


def _three(sizes: int | Sequence[int]) -> Coordinates:
    values = (sizes,) if isinstance(sizes, int) else tuple(int(s) for s in sizes)
    x, y, z = (*values, 1, 1)[:3]
    return x, y, z


def _argument(parameter: Parameter, value: Any) -> bytes:
    """The bytes of one kernel argument."""
    if value is None:
        value = 0
    if isinstance(value, bytes | bytearray):
        data = bytes(value)
    elif isinstance(value, np.generic):
        data = value.tobytes()
    elif parameter.type in ("f32", "f64") or isinstance(value, float):
        data = np.asarray(value, f"f{parameter.size}").tobytes()
    else:
        data = (int(value) % (1 << 8 * parameter.size)).to_bytes(parameter.size, "little")
    if len(data) != parameter.size:
        raise ValueError(f"argument {parameter.name} has {len(data)} bytes, the kernel expects {parameter.size}")
    return data


def _check_written(recorder: Recorder, allocation: Allocation) -> None:
    missing = allocation.unwritten_elements()
    count = int(np.count_nonzero(missing))
    if count:
        first = np.unravel_index(int(np.argmax(missing)), missing.shape)
        index = ", ".join(str(int(i)) for i in first)
        text = f"{count} of {missing.size} elements of {allocation.name} were never written, first [{index}]"
        recorder.add("unwritten output", None, text, lanes=count)


def _counters(state: LaunchState) -> Counters:
    counters = Counters(
        mma=state.mma,
        macs=state.macs,
        wgmma=state.wgmma,
        divergent_branches=state.divergent_branches,
        accesses=[state.accesses[i] for i in sorted(state.accesses)],
        block_count=len(state.program.blocks),
    )
    uncovered: dict[str, None] = {}
    rows = zip(state.program.blocks, state.program.classes, state.block_threads, state.block_warps, strict=True)
    for block, classes, threads, warps in rows:
        counters.thread_instructions += threads * len(classes)
        counters.warp_instructions += warps * len(classes)
        for group, name in classes:
            counters.classes[group] += threads
            counters.opcodes[name] += threads
        counters.blocks_covered += threads > 0
        if not threads:
            uncovered |= dict.fromkeys(str(i.source[0]) for i in block.instructions if i.source)
    counters.uncovered = list(uncovered)
    for allocation in state.space.allocations:
        read, written = (int(np.count_nonzero(s)) * 32 for s in (allocation.sectors_read, allocation.sectors_written))
        if (read or written) and not allocation.internal:
            counters.traffic[allocation.name] = Traffic(read, written)
    return counters


_default = Emulator()


def run(launch: Launch, operands: Mapping[str, Array | None]) -> Report:
    """Run a launch on the default emulator (sm_80, all checks); see :meth:`Emulator.run`."""
    return _default.run(launch, operands)


def last_report() -> Report | None:
    """The report of the last :func:`run`."""
    return _default.last_report
