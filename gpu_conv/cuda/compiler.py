"""CUDA C++ to cubin and PTX with NVRTC: one template instantiation at a time, no GPU and no driver needed.

NVRTC is called directly: ``cupy.RawModule(code=...)`` would add ``-ftz=true`` (which flushes float32 subnormals) and
the plain ``sm_90``, which has no wgmma.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache as once
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from gpu_conv.cuda import cache, resources
from gpu_conv.cuda.errors import CompileError, NvrtcMissing, UnsupportedArchitecture
from gpu_conv.cuda.source import load
from gpu_conv.launch import Launch
from gpu_conv.locks import new_lock

# Constants: they are part of the cache key. Functions without __device__ stay host functions, as with nvcc; floating
# point stays IEEE: no -ftz, no fast math. NVRTC's own cache (it has one where there is a driver) is off: a hit in it
# would skip ptxas, whose report is wanted. Minimal leaves texture functions out: 10 ms less, the same code.
OPTIONS = ("--std=c++17", "--generate-line-info", "--no-cache", "--minimal")
_VIRTUAL = "compute_"  # such an architecture is a PTX dialect: ptxas, a third of the time, does not run

_MEMO_SIZE = 256  # kernels kept in the process, some 100 KB each
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture.

    Attributes:
        name_expression: the instantiation, ``"direct<float, 3>"``.
        arch: exact architecture, ``"sm_90a"``; or ``"compute_90a"``, which has PTX alone: no cubin, all resources 0.
        lowered: its mangled name in the binary.
        cubin, ptx: machine code, and the text that the emulator runs.
        log: everything that NVRTC and ptxas said.
        registers: per thread.
        spill_bytes, local_bytes: per thread, of device functions that were not inlined too.
        shared_bytes: static shared memory per block.
    """

    name_expression: str
    arch: str
    lowered: str
    cubin: bytes = field(repr=False)
    ptx: str = field(repr=False)
    log: str = field(repr=False)
    registers: int
    spill_bytes: int
    local_bytes: int
    shared_bytes: int

    @property
    def warnings(self) -> list[str]:
        """Lines of the log in which something is warned of."""
        return resources.warnings(self.log)


def compile(source: str, name_expression: str, arch: str) -> Compiled:
    """Compile one instantiation, or take it from this process or from the disk cache. Thread-safe.

    Args:
        source: complete translation unit, as :func:`gpu_conv.cuda.source.load` makes it.
        name_expression: the instantiation as C++ spells it; always spell it the same way, it is part of the cache key.
        arch: exact architecture, ``"sm_80"`` or ``"sm_90a"``; ``"compute_80"`` for its PTX alone, a third faster.

    Raises:
        CompileError: NVRTC refused the source; UnsupportedArchitecture: it does not know the architecture.
        NvrtcMissing: NVRTC is not installed.
    """
    slot = _slot((source, name_expression, arch))
    with slot.lock:  # threads that want the same kernel wait for one compilation, others go on
        if slot.compiled is None:
            slot.compiled = _from_disk_or_nvrtc(source, name_expression, arch)
        return slot.compiled


def compile_launch(launch: Launch, arch: str) -> Compiled:
    """The kernel that ``launch`` asks for, compiled for ``arch``."""
    return compile(load(launch.source), launch.name_expression, arch)


def warm(launches: Iterable[Launch], arch: str, threads: int | None = None) -> list[Compiled]:
    """Fill the disk cache for ``arch`` on a machine that may have no GPU. Each instantiation is compiled once.

    Args:
        launches: what will be launched.
        arch: exact architecture, ``"sm_90a"``.
        threads: compilations at a time; one per processor without it.

    Returns:
        The kernels, in the order in which ``launches`` first ask for them.
    """
    wanted = {(launch.source, launch.name_expression): launch for launch in launches}
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return list(pool.map(lambda launch: compile_launch(launch, arch), wanted.values()))


def nvrtc_version() -> str:
    """Version of the compiler, ``"13.0"``; NvrtcMissing where it is."""
    return _nvrtc()[1]


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=new_lock)
    compiled: Compiled | None = None


_slots: OrderedDict[tuple[str, str, str], _Slot] = OrderedDict()
_slots_lock = new_lock()


def _slot(key: tuple[str, str, str]) -> _Slot:
    with _slots_lock:
        slot = _slots.setdefault(key, _Slot())
        _slots.move_to_end(key)
        if len(_slots) > _MEMO_SIZE:
            _slots.popitem(last=False)
        return slot


def _from_disk_or_nvrtc(source: str, name_expression: str, arch: str) -> Compiled:
    for version in _versions():
        key = cache.key(source, *OPTIONS, name_expression, arch, version)
        if entry := cache.read(key):
            facts, cubin, ptx = entry
            return Compiled(name_expression, arch, cubin=cubin, ptx=ptx.decode(), **facts)  # type: ignore[arg-type]
    nvrtc, version = _nvrtc()
    start = time.perf_counter()
    lowered, cubin, ptx, log = _run_nvrtc(nvrtc, version, source, name_expression, arch)
    used = resources.Resources(0, 0, 0, 0) if arch.startswith(_VIRTUAL) else resources.parse(log)
    facts = {"lowered": lowered, "log": log, **vars(used)}
    _LOGGER.info(
        "compiling %s for %s: %.2f s, %d registers",
        name_expression,
        arch,
        time.perf_counter() - start,
        facts["registers"],
    )
    cache.write(key, facts, cubin, ptx)
    return Compiled(name_expression, arch, cubin=cubin, ptx=ptx.decode(), **facts)  # type: ignore[arg-type]


def _versions() -> Iterator[str]:
    """Those of NVRTC under which a kernel may be kept: of its wheel, then, if asked on, of the library that is loaded.

    They are the same unless something else has loaded another library. Importing the binding takes 45 ms, as much as
    all else that a network in a full cache needs before its kernels are read.
    """
    if version := _wheel_version():
        yield version
    yield _nvrtc()[1]


@once
def _wheel_version() -> str | None:
    """The version that NVRTC's wheel has in a file name, ``"13.0"``; None without a wheel, or with several."""
    package = find_spec("nvidia")
    folders = package.submodule_search_locations if package else None
    found = [path for folder in folders or () for path in Path(folder).glob("*/lib/libnvrtc-builtins.so.*")]
    return found[0].name.partition(".so.")[2] if len(found) == 1 else None


@once
def _nvrtc() -> tuple[ModuleType, str]:
    """The binding and the version of the library behind it, ``"13.0"``."""
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # RuntimeError: the binding is there, the library is not
        raise NvrtcMissing(
            'kernels are compiled with NVRTC, which is missing: pip install "gpu-conv[cuda13]" '
            'or "gpu-conv[cuda12]", whichever fits your CuPy; "gpu-conv[emulator]" without a GPU. '
            f"{type(error).__name__}: {error}"
        ) from error
    return nvrtc, f"{major}.{minor}"


def _run_nvrtc(
    nvrtc: ModuleType, version: str, source: str, name_expression: str, arch: str
) -> tuple[str, bytes, bytes, str]:
    """Mangled name, cubin, PTX and log."""
    _check_arch(nvrtc, version, arch)
    expression = name_expression.encode()
    program = _call(nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], []))
    try:
        _call(nvrtc.nvrtcAddNameExpression(program, expression))
        virtual = arch.startswith(_VIRTUAL)
        report = () if virtual else ("--ptxas-options=--verbose",)
        options = [option.encode() for option in (f"--gpu-architecture={arch}", *OPTIONS, *report)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _bytes(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0\n ").decode()
        if int(status):
            raise CompileError(f"NVRTC {version} could not compile {name_expression} for {arch}:\n{log}")
        lowered = _call(nvrtc.nvrtcGetLoweredName(program, expression)).decode()
        cubin = b"" if virtual else _bytes(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        ptx = _bytes(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).rstrip(b"\0")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return lowered, cubin, ptx, log


def _check_arch(nvrtc: ModuleType, version: str, arch: str) -> None:
    known = _call(nvrtc.nvrtcGetSupportedArchs())
    match = re.fullmatch(rf"(?:sm_|{_VIRTUAL})(\d+)[af]?", arch)
    if match is None or int(match[1]) not in known:
        raise UnsupportedArchitecture(
            f"NVRTC {version} does not know the architecture {arch!r}, only {', '.join(f'sm_{n}' for n in known)} "
            "(and their a and f variants); a newer GPU needs a newer one: pip install -U nvidia-cuda-nvrtc; one older "
            "than compute capability 7.5 runs no kernel of this package, but NumPy arrays need none"
        )


def _call(result: tuple[Any, ...]) -> Any:
    """The value of one NVRTC call, whose status comes first."""
    status, *values = result
    if int(status):
        raise CompileError(f"NVRTC failed: {status!r}")
    return values[0] if values else None


def _bytes(size: Any, fetch: Any, program: Any) -> bytes:
    count = _call(size(program))
    buffer = bytes(count + 1)  # the binding writes into it: never into one byte, which Python shares with everybody
    _call(fetch(program, buffer))
    return buffer[:count]
