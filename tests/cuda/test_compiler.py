import logging
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType

import pytest

from gpu_conv.cuda import CompileError, CudaUnavailable, compiler, resources
from gpu_conv.cuda.compiler import compile, warm
from tests.cuda import tiny

pytest.importorskip("cuda.bindings.nvrtc")

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")


@pytest.fixture
def runs(monkeypatch):
    """The (name expression, arch) of every run of NVRTC."""
    seen = []
    real = compiler._run_nvrtc

    def counted(nvrtc, version, text, name_expression, arch):
        seen.append((name_expression, arch))
        return real(nvrtc, version, text, name_expression, arch)

    monkeypatch.setattr(compiler, "_run_nvrtc", counted)
    return seen


@pytest.mark.parametrize("arch", ARCHS)
def test_one_instantiation_as_cubin_and_ptx_for_the_exact_architecture(arch):
    compiled = compile(tiny.TEXT, "tiny<float, 3>", arch)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert compiled.lowered.encode() in compiled.cubin
    assert re.findall(r"^\.target (\w+)", compiled.ptx, re.MULTILINE) == [arch]
    assert re.findall(r"\.entry (\w+)", compiled.ptx) == [compiled.lowered]
    assert compiled.lowered.startswith("_Z4tinyIfLi3EE")
    assert 0 < compiled.registers <= 64
    assert (compiled.spill_bytes, compiled.local_bytes, compiled.shared_bytes) == (0, 0, 0)
    assert compiled.warnings == []


def test_instructions_of_sm_90a_alone_assemble():
    text = '__global__ void only90a() { asm volatile("wgmma.fence.sync.aligned;"); }'
    assert "wgmma.fence" in compile(text, "only90a", "sm_90a").ptx
    with pytest.raises(CompileError, match="wgmma"):
        compile(text, "only90a", "sm_90")


def test_resources_of_kernels_whose_frames_are_known():
    frames = compile(tiny.TEXT, "frames<float>", "sm_80")
    assert frames.shared_bytes == 64 * 4
    assert frames.local_bytes == 64 * 4
    assert frames.spill_bytes == 0
    assert compile(tiny.TEXT, "spills<float>", "sm_80").spill_bytes > 100 * 4
    assert compile(tiny.TEXT, "spills<float>", "sm_80").registers == 32


def test_resources_parse_a_log_with_a_function_that_was_not_inlined():
    log = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_80'
ptxas info    : Function properties for k
ptxas         .     256 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 256 bytes cumulative stack size, 1280 bytes smem, 376 bytes cmem[0]
ptxas info    : Function properties for f
ptxas         .     16 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""
    assert resources.parse(log) == resources.Resources(32, spill_bytes=28, local_bytes=272, shared_bytes=1280)
    with pytest.raises(ValueError, match="no ptxas line"):
        resources.parse("")


@pytest.mark.parametrize(
    ("arguments", "blocks", "limit"),
    [
        (("sm_80", 256, 32, 0), 8, "warps"),  # 64 warps
        (("sm_80", 32, 16, 0), 32, "blocks"),
        (("sm_80", 128, 72, 1152), 7, "registers"),  # 9 * 256 per warp: 7 warps in each quarter of 16384
        (("sm_90a", 256, 32, 100 * 1024), 2, "shared memory"),  # 228 KB, 1 KB of each block is the system's
        (("sm_90a", 1024, 32, 227 * 1024), 1, "shared memory"),
        (("sm_86", 1024, 64, 0), 1, "warps"),
        (("sm_75", 1024, 32, 0), 1, "warps"),
    ],
)
def test_occupancy_of_cases_counted_by_hand(arguments, blocks, limit):
    found = resources.occupancy(*arguments)
    assert (found.blocks, found.limit) == (blocks, limit)


def test_occupancy_is_a_share_of_the_warps():
    assert resources.occupancy("sm_80", 128, 72, 1152).fraction == 7 * 4 / 64
    with pytest.raises(ValueError, match=r"sm_60 is unknown; known are sm_75"):
        resources.occupancy("sm_60", 128, 32, 0)


def test_arithmetic_is_ieee(monkeypatch):
    ptx = compile(tiny.TEXT, "frames<float>", "sm_80").ptx
    assert "div.rn.f32" in ptx
    assert ".ftz" not in ptx
    monkeypatch.setattr(compiler, "OPTIONS", (*compiler.OPTIONS, "-ftz=true"))
    compiler._slots.clear()
    assert ".ftz" in compile(tiny.TEXT, "frames<float>", "sm_80").ptx  # and so the options are part of the key


def test_line_information_names_the_original_file():
    ptx = compile(tiny.TEXT, "tiny<float, 3>", "sm_80").ptx
    files = set(re.findall(r'^\s*\.file\s+\d+ "(?:.*/)?(kernels/[^"]+)"', ptx, re.MULTILINE))
    assert files == {"kernels/tiny.cu", "kernels/tiny.cuh"}


def test_a_compile_error_shows_the_original_line_and_the_sentence_of_a_static_assert():
    line = tiny.ROOT.joinpath("tiny.cuh").read_text().split("scaled")[0].count("\n") + 1
    with pytest.raises(CompileError, match=rf'kernels/tiny\.cuh\({line}\): error: identifier "scole"'):
        compile(tiny.TEXT.replace("value * p.scale", "value * scole"), "tiny<float, 3>", "sm_80")
    text = 'template <int N> __global__ void k() { static_assert(N % 8 == 0, "the tile is a multiple of 8"); }'
    with pytest.raises(CompileError, match=r"k<3> for sm_80:\n(?s:.*)the tile is a multiple of 8"):
        compile(text, "k<3>", "sm_80")


def test_a_virtual_architecture_gives_the_same_ptx_and_no_cubin():
    exact, virtual = (compile(tiny.TEXT, "tiny<float, 3>", arch) for arch in ("sm_80", "compute_80"))
    assert virtual.cubin == b"" and virtual.registers == 0 < exact.registers
    assert virtual.ptx == exact.ptx and virtual.lowered == exact.lowered
    assert not virtual.log and b"a b"[1] == ord(" ")  # an empty log is one byte, and Python's single bytes are shared


def test_an_instantiation_that_does_not_exist_is_a_compile_error():
    with pytest.raises(CompileError, match="nothing<float>"):
        compile(tiny.TEXT, "nothing<float>", "sm_80")


@pytest.mark.parametrize("arch", ["sm_999", "90", "compute_999", "sm_80; --ftz=true"])
def test_an_unknown_architecture_is_named_with_the_known_ones(arch):
    with pytest.raises(CompileError, match=rf"'{re.escape(arch)}', only .*sm_80, .*pip install -U nvidia-cuda-nvrtc"):
        compile(tiny.TEXT, "tiny<float, 3>", arch)


def test_functions_without_a_space_are_host_functions_as_with_nvcc():
    with pytest.raises(CompileError, match="considered a host function"):
        compile("float f(float a) { return a; } __global__ void k(float* y) { y[0] = f(y[1]); }", "k", "sm_80")


def test_warnings_are_found_in_the_log():
    compiled = compile("__global__ void k(float* y) { int unused; y[0] = 1.0f; }", "k", "sm_80")
    (warning,) = compiled.warnings
    assert '"unused" was declared but never referenced' in warning
    serialised = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"
    assert replace(compiled, log=serialised).warnings == [serialised]


def test_one_info_line_per_compilation_and_none_for_a_hit(caplog):
    caplog.set_level(logging.INFO, "gpu_conv")
    for _ in range(2):
        compile(tiny.TEXT, "tiny<float, 3>", "sm_90a")
        compiler._slots.clear()
    (line,) = caplog.messages
    assert re.fullmatch(r"compiling tiny<float, 3> for sm_90a: \d+\.\d\d s, \d+ registers", line)


def test_the_memo_and_the_disk_spare_a_compilation(runs):
    first = compile(tiny.TEXT, "tiny<float, 3>", "sm_80")
    assert compile(tiny.TEXT, "tiny<float, 3>", "sm_80") is first
    compiler._slots.clear()
    assert compile(tiny.TEXT, "tiny<float, 3>", "sm_80") == first
    assert runs == [("tiny<float, 3>", "sm_80")]


def test_text_instantiation_architecture_and_nvrtc_version_are_told_apart(runs, monkeypatch):
    asked = [
        (tiny.TEXT, "tiny<float, 3>", "sm_80"),
        (tiny.TEXT + "\n", "tiny<float, 3>", "sm_80"),
        (tiny.TEXT, "tiny<float, 4>", "sm_80"),
        (tiny.TEXT, "tiny<float, 3>", "sm_86"),
    ]
    for arguments in asked:
        compile(*arguments)
    assert runs == [arguments[1:] for arguments in asked]
    nvrtc, version = compiler._nvrtc()
    monkeypatch.setattr(compiler, "_nvrtc", lambda: (nvrtc, "11.0"))
    monkeypatch.setattr(compiler, "_wheel_version", lambda: None)
    for found in (5, 5):  # compiled, then read
        compiler._slots.clear()
        compile(*asked[0])
        assert len(runs) == found
    monkeypatch.setattr(compiler, "_wheel_version", lambda: version)
    compiler._slots.clear()
    compile(tiny.TEXT, "tiny<float, 5>", "sm_80")  # under the version of the library that compiles
    monkeypatch.setattr(compiler, "_wheel_version", lambda: None)
    compiler._slots.clear()
    compile(tiny.TEXT, "tiny<float, 5>", "sm_80")
    assert len(runs) == 6


def test_a_kernel_in_the_cache_is_read_without_the_binding(runs, monkeypatch):
    if compiler._wheel_version() is None:
        pytest.skip("NVRTC is not that of a wheel")
    assert compiler._wheel_version() == compiler.nvrtc_version()
    first = compile(tiny.TEXT, "tiny<float, 3>", "sm_80")
    compiler._slots.clear()
    monkeypatch.setattr(compiler, "_nvrtc", None)
    assert compile(tiny.TEXT, "tiny<float, 3>", "sm_80") == first
    assert len(runs) == 1


@pytest.mark.parametrize(("names", "version"), [((), None), (("cu13",), "13.4"), (("cu13", "cuda_nvrtc"), None)])
def test_the_version_of_the_only_wheel_is_that_of_nvrtc(names, version, tmp_path, monkeypatch):
    for name in names:
        (tmp_path / "nvidia" / name / "lib").mkdir(parents=True)
        for file in ("libnvrtc.so.13", "libnvrtc-builtins.so.13.4", "libnvrtc-builtins.alt.so.13.4"):
            (tmp_path / "nvidia" / name / "lib" / file).touch()
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert compiler._wheel_version.__wrapped__() == version


def test_a_corrupt_entry_is_compiled_again_and_repaired(runs, own_cache):
    first = compile(tiny.TEXT, "tiny<float, 3>", "sm_80")
    (entry,) = own_cache.iterdir()
    good = entry.read_bytes()
    for bad in (b"", good[:-1], good.replace(b"\x7fELF", b"\x7fELG")):
        entry.write_bytes(bad)
        compiler._slots.clear()
        again = compile(tiny.TEXT, "tiny<float, 3>", "sm_80")
        assert (again.cubin, again.ptx) == (first.cubin, first.ptx)
        compiler._slots.clear()
        assert compile(tiny.TEXT, "tiny<float, 3>", "sm_80") == again
    assert len(runs) == 4


def test_threads_that_want_one_kernel_compile_it_once(runs):
    barrier = threading.Barrier(8)

    def ask(number):
        barrier.wait()
        return compile(tiny.TEXT, f"tiny<float, {number % 2}>", "sm_80")

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask, range(8)))
    assert sorted(runs) == [("tiny<float, 0>", "sm_80"), ("tiny<float, 1>", "sm_80")]
    assert len({id(result) for result in results}) == 2


def test_a_failed_compilation_is_not_remembered(runs):
    for _ in range(2):
        with pytest.raises(CompileError):
            compile(tiny.TEXT, "nothing", "sm_80")
    assert len(runs) == 2


def test_the_memo_is_bounded(monkeypatch):
    monkeypatch.setattr(compiler, "_MEMO_SIZE", 2)
    for number in (1, 2, 1, 3):
        compile(tiny.TEXT, f"tiny<float, {number}>", "sm_80")
    assert [key[1] for key in compiler._slots] == ["tiny<float, 1>", "tiny<float, 3>"]


def test_warm_compiles_each_instantiation_once_and_fills_the_disk(runs, monkeypatch):
    monkeypatch.setattr(compiler, "load", lambda name: tiny.TEXT)
    launches = [tiny.launch(), tiny.launch(count=5), tiny.launch(template=("double", 1)), tiny.launch()]
    names = ["tiny<float, 3>", "tiny<double, 1>"]
    assert [compiled.name_expression for compiled in warm(launches, "sm_90a")] == names
    compiler._slots.clear()
    warm(launches, "sm_90a")
    assert sorted(runs) == sorted((name, "sm_90a") for name in names)


def broken_binding():
    module = ModuleType("nvrtc")

    def version():
        raise RuntimeError("Failed to dlopen libnvrtc.so.13")

    module.nvrtcVersion = version
    return module


@pytest.mark.parametrize("bindings", [None, broken_binding()], ids=["no binding", "no library"])
def test_missing_nvrtc_names_the_repair(bindings, monkeypatch):
    package = None
    if bindings:
        package = ModuleType("cuda.bindings")
        package.nvrtc = bindings
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    compiler._nvrtc.cache_clear()
    try:
        with pytest.raises(CudaUnavailable, match=r'pip install "gpu-conv\[cuda13\]".*cuda12'):
            compile(tiny.TEXT, "tiny<float, 3>", "sm_80")
    finally:
        compiler._nvrtc.cache_clear()
