"""GPUs to plan for where there is none: the emulator, ``explain`` and ``warmup`` use them by architecture."""

from __future__ import annotations

from gpu_conv.launch import Target

_KIB = 1024

# Multiprocessors and the opt-in limit of shared memory per block as NVIDIA publishes them for a common board of each
# architecture. The copy bandwidth is left out: nothing was measured.
KNOWN_TARGETS = {
    target.arch: target
    for target in (
        Target("sm_75", 40, 64 * _KIB, name="Tesla T4 (data sheet)"),
        Target("sm_80", 108, 163 * _KIB, name="A100 (data sheet)"),
        Target("sm_86", 82, 99 * _KIB, name="GeForce RTX 3090 (data sheet)"),
        Target("sm_89", 128, 99 * _KIB, name="GeForce RTX 4090 (data sheet)"),
        Target("sm_90a", 132, 227 * _KIB, name="H100 SXM (data sheet)"),
        Target("sm_100", 148, 227 * _KIB, name="B200 (data sheet)"),
        Target("sm_120", 170, 99 * _KIB, name="GeForce RTX 5090 (data sheet)"),
    )
}


def arch_of(major: int, minor: int) -> str:
    """The architecture to compile for, from the compute capability: ``"sm_90a"`` for 9.0, which alone has wgmma."""
    return "sm_90a" if (major, minor) == (9, 0) else f"sm_{major}{minor}"
