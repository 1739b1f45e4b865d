"""What one compiled kernel takes from the machine, read from the log of ``ptxas -v``, and how many blocks then fit."""

from __future__ import annotations

import re
from dataclasses import dataclass

_USED = re.compile(r"Used (\d+) registers")
_STATIC_SHARED = re.compile(r"(\d+) bytes smem")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Resources:
    """Registers, bytes spilled (stores plus loads) and bytes of local memory per thread; static shared bytes per block.

    Spills and local memory include device functions that were not inlined.
    """

    registers: int
    spill_bytes: int
    local_bytes: int
    shared_bytes: int


def parse(log: str) -> Resources:
    """Resources of the only kernel in the log of one compilation with ``--ptxas-options=--verbose``.

    Raises:
        ValueError: the log holds no line of ptxas.
    """
    used = _USED.search(log)
    if used is None:
        raise ValueError(f"no ptxas line in the compiler's log:\n{log}")
    shared = _STATIC_SHARED.search(log)
    frames = [tuple(map(int, row)) for row in _FRAME.findall(log)]
    return Resources(
        registers=int(used[1]),
        spill_bytes=sum(stores + loads for _, stores, loads in frames),
        local_bytes=sum(frame for frame, _, _ in frames),
        shared_bytes=int(shared[1]) if shared else 0,
    )


def warnings(log: str) -> list[str]:
    """Lines in which the compiler or ptxas warns, or ptxas regrets, as in (C7510), serialised wgmma."""
    return [line for line in log.splitlines() if re.search(r"\bwarning\s*[#:]|\(C\d{4}\)", line)]


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks per multiprocessor, the share of its warps that they fill, and the resource that runs out."""

    blocks: int
    fraction: float
    limit: str


# Per multiprocessor: warps, blocks, bytes of shared memory, bytes that the system takes of them for each block
# (CUDA programming guide, technical specifications per compute capability).
_MULTIPROCESSORS = {
    75: (32, 16, 64 << 10, 0),
    80: (64, 32, 164 << 10, 1024),
    86: (48, 16, 100 << 10, 1024),
    89: (48, 24, 100 << 10, 1024),
    90: (64, 32, 228 << 10, 1024),
    100: (64, 32, 228 << 10, 1024),
    120: (48, 24, 100 << 10, 1024),
}
_REGISTERS = 65536  # in four partitions; a warp takes them from one, in units of 256
_SHARED_UNIT = {75: 256}  # bytes, 128 since Ampere


def occupancy(arch: str, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Blocks that fit on one multiprocessor at a time.

    Args:
        arch: as NVRTC spells it, ``"sm_90a"``.
        threads: per block.
        registers: per thread.
        shared_bytes: per block, static and dynamic.

    Raises:
        ValueError: the limits of this architecture are not known.
    """
    capability = int(re.sub(r"\D", "", arch))
    if capability not in _MULTIPROCESSORS:
        raise ValueError(f"occupancy on {arch} is unknown; known are {', '.join(f'sm_{c}' for c in _MULTIPROCESSORS)}")
    warps, blocks, shared, reserved = _MULTIPROCESSORS[capability]
    warps_per_block = -(-threads // 32)
    warps_per_partition = _REGISTERS // 4 // _round_up(max(registers, 1) * 32, 256)
    limits = {
        "warps": warps // warps_per_block,
        "blocks": blocks,
        "registers": 4 * warps_per_partition // warps_per_block,
        "shared memory": shared // max(_round_up(shared_bytes + reserved, _SHARED_UNIT.get(capability, 128)), 1),
    }
    limit = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limit], limits[limit] * warps_per_block / warps, limit)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
