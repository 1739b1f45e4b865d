"""The static gates: limits of every kernel that the core rows ask for, and figures that must not get worse."""

import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

from gpu_conv.cuda import compiler

pytest.importorskip("cuda.bindings.nvrtc")
pytest.importorskip("rich")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# One cheap layer for every kernel, on one architecture each: a quarter of a minute of CPU time without a cache. The
# whole table is `python benchmarks/static.py`.
RECOUNTED = (
    "mobilenetv2 depthwise3x3s2x2_c192k192_28x28_relu6 float16 nhwc sm_80",
    "mobilenetv2 depthwise3x3s1x1_c576k576_14x14_relu6 float16 nhwc sm_90a",
    "mobilenetv1 depthwise3x3s1x1_c512k512_14x14_relu6 float16 nchw sm_120",
    "mobilenetv2 depthwise3x3s1x1_c192k192_28x28_relu6 float32 nchw sm_90a",
    "mobilenetv2 depthwise3x3s2x2_c576k576_14x14_relu6 float32 nchw sm_80",
    "mamba_2.8b_L2048 depthwise4s1_c5120k5120_2048_silu float32 nchw sm_120",
    "conformer_l_512_k31_T500 depthwise31s1_c512k512_500_silu float16 nchw sm_90a",
    "mobilenetv2 pointwise1x1s1x1_c96k24_56x56 float16 nhwc sm_90a",
    "mobilenetv2 pointwise1x1s1x1_c96k24_56x56 float32 nchw sm_80",
    "resnext50_32x4d grouped3x3s1x1_c128k128_56x56_relu float16 nhwc sm_120",
)


@pytest.fixture(scope="module")
def static():
    sys.path.insert(0, str(BENCHMARKS))
    import static

    yield static
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def document(static):
    return static.read()


def test_every_gate_holds_or_is_argued(static, document):
    assert static.unargued(document["rows"], document["argued"]) == []


def test_the_file_is_of_this_table(static, document):
    """The kernels are those that the table takes now: none falls back to another unseen. What is missing is counted."""
    asked = {case.name: case for case in static.cases()}
    assert len(asked) == 79 * 4 * len(static.ARCHS) and document["rows"].keys() <= asked.keys()
    missing = Counter(case.arch for name, case in asked.items() if name not in document["rows"])
    assert document["not_counted_yet"] == missing
    rows = {name: row for name, row in document["rows"].items() if name.endswith("sm_90a")}
    kernels = {name: (row["kernel"], asked[name].launch.kernel) for name, row in rows.items()}
    changed = [f"{name}: {old} in static.json, {new} now" for name, (old, new) in kernels.items() if old != new]
    assert not changed, "\n".join([*changed, "python benchmarks/static.py --update"])


def test_rows_without_a_special_kernel_are_argued(static):
    """Every core row of every architecture runs on a kernel of its own, or is among the exceptions of the file."""
    argued = [entry for entry in static.read()["argued"] if entry["gate"] == "kernel"]
    cases = static.cases(["sm_90a"])
    row = {"spill_bytes": 0, "local_bytes": 0}
    fallen = {case.name: row | {"kernel": "direct"} for case in cases if case.launch.kernel == "direct"}
    assert static.unargued(fallen, argued) == []


@pytest.mark.parametrize("name", RECOUNTED)
def test_no_figure_got_worse(static, document, name):
    """More than 3 % fails, whether or not the code of the row has changed."""
    if document["nvrtc"] != compiler.nvrtc_version():
        pytest.skip(f"static.json is of NVRTC {document['nvrtc']}, this is {compiler.nvrtc_version()}")
    (case,) = static.cases([name.rsplit(" ", 1)[1]], only=name)
    found = static.measure(case)
    assert {field.name for field in fields(static.Counts)} <= found.keys()
    worse = static.regressions(name, document["rows"][name], found)
    assert not worse, "\n".join([*worse, "if that is meant: python benchmarks/static.py --update"])


ROW = {"kernel": "pointwise", "registers": 100, "spill_bytes": 0, "local_bytes": 0, "slots": 30.0, "ffma": 9.0,
       "mma": 0.0, "shared": 0.5, "conflicts": 1.0, "dram": 1.0, "l2": 1.5, "wide_loads": 0.5}  # fmt: skip


@pytest.mark.parametrize(
    ("figure", "value", "told"),
    [
        ("registers", 103, None),
        ("registers", 104, "row (pointwise): registers was 100, is 104"),
        ("slots", 30.8, None),
        ("slots", 31.0, "row (pointwise): slots was 30, is 31"),
        ("slots", 20.0, None),
        ("spill_bytes", 8, "row (pointwise): spill_bytes was 0, is 8"),
        ("mma", 1.0, "row (pointwise): mma was 0, is 1"),
        ("wide_loads", 0.48, "row (pointwise): wide_loads was 0.5, is 0.48"),
        ("wide_loads", 0.9, None),
        ("kernel", "direct", "row: kernel was pointwise, is direct"),
    ],
)
def test_a_regression_is_named_with_both_figures(static, figure, value, told):
    assert static.regressions("row", ROW, ROW | {figure: value}) == ([told] if told else [])


@pytest.mark.parametrize(
    ("name", "change", "gate"),
    [
        ("net depthwise3x3s1x1_c8 float16 nhwc sm_80", {"slots": 37.0}, None),
        ("net depthwise3x3s1x1_c8 float16 nhwc sm_80", {"slots": 38.0}, "slots"),
        ("net depthwise3x3s1x1_c8 float32 nhwc sm_80", {"slots": 74.0}, None),
        ("net depthwise3x3s1x1_c8 float32 nhwc sm_80", {"slots": 75.0}, "slots"),
        ("net depthwise3x3s2x2_c8 float16 nhwc sm_80", {"slots": 90.0}, None),
        ("net depthwise4s1_c8 float16 nhwc sm_80", {"slots": 38.0}, "slots"),
        ("net pointwise1x1s1x1_c8 float16 nhwc sm_80", {"slots": 900.0}, None),
        ("net pointwise1x1s1x1_c8 float16 nhwc sm_80", {"conflicts": 1.11}, "conflicts"),
        ("net pointwise1x1s1x1_c8 float16 nhwc sm_80", {"dram": 1.11}, "dram"),
        ("net pointwise1x1s1x1_c8 float16 nhwc sm_80", {"local_bytes": 4}, "local_bytes"),
        ("net dense3x3s1x1_c8 float32 nhwc sm_80", {"kernel": "direct"}, "kernel"),
    ],
)
def test_a_gate_is_exceeded_unless_argued(static, name, change, gate):
    rows = {name: ROW | change}
    found = static.unargued(rows, [])
    assert [line.split(": ")[1] for line in found] == ([gate] if gate else [])
    if gate:
        assert static.unargued(rows, [{"gate": gate, "rows": "net", "why": "a reason"}]) == []
    other = [{"gate": "conflicts", "rows": "other net", "why": "a reason"}]
    assert static.unargued(rows, other)[-1] == "argued for nothing: a reason"
