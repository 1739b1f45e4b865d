"""The table of predicted times is that of the present kernels, names itself a prediction, and its error is known."""

import json
import subprocess
import sys
from math import exp, log
from pathlib import Path
from statistics import fmean, median

import pytest

pytest.importorskip("rich")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def predicted():
    sys.path.insert(0, str(BENCHMARKS))
    import predicted

    yield predicted
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def document():
    return json.loads((BENCHMARKS / "predicted.json").read_text())


@pytest.fixture(scope="module")
def found(predicted):
    return predicted.rows(predicted.static.read()["rows"])


def test_the_file_is_of_the_present_kernels_and_model(document, found):
    assert len(found) == 79 * 4 and found.keys() == document["rows"].keys()
    different = [name for name, row in found.items() if row != document["rows"][name]]
    assert not different, f"{different[:5]} differ: python benchmarks/predicted.py --update"


def test_it_says_that_it_is_a_prediction(document, predicted, found):
    assert document["what"] == "PREDICTED by a model from counts in an emulator; no GPU ran this"
    assert predicted.summary(found).title == predicted.details(found).title == document["what"]


def test_no_row_below_half_of_its_floor_without_a_reason(predicted, document):
    assert predicted.unargued(document["rows"], document["argued"]) == []


def test_unargued_rows_and_idle_reasons_are_named(predicted):
    rows = {"net a": {"kernel": "pointwise", "of_floor": 0.49}, "net b": {"kernel": "pointwise", "of_floor": 0.5}}
    assert predicted.unargued(rows, []) == ["net a (pointwise): 0.49 of its floor"]
    assert predicted.unargued(rows, [{"rows": "^pointwise .*a$", "why": "known"}]) == []
    assert predicted.unargued(rows, [{"rows": "a$", "why": "known"}, {"rows": "b$", "why": "idle"}]) == [
        "argued for nothing: idle"
    ]


def test_the_error_against_the_recorded_run(predicted, document):
    """What the documentation says of the model: most rows were measured with the same kernel and tile."""
    known = [abs(error) for error in predicted.errors(document["rows"].values())]
    assert len(known) >= 200
    assert exp(median(known)) - 1 < 0.12 and exp(fmean(known)) - 1 < 0.25
    for row in document["rows"].values():
        if "error" in row:
            assert row["us"] / row["measured_us"] - 1 == pytest.approx(row["error"], abs=2e-3)


def test_floor_by_hand(predicted):
    """3x3 on 4x4 with padding: 100 of 144 taps meet the input; 1x1: every product, on the tensor cores in float16."""
    row = {
        "C": 32, "K": 32, "groups": 32, "in_spatial": [4, 4], "filter": [3, 3], "stride": [1, 1], "pad": [1, 1],
        "dilation": [1, 1], "causal": False, "epilogue": [],
    }  # fmt: skip
    model = sys.modules["model"]
    p = predicted.problem(row, "float16", True, 1 << 16, bias="float16")
    assert model._products(p) == (1 << 16) * 32 * 100
    moved = 2 * (2 * (1 << 16) * 32 * 16 + 32 * 9 + 32)
    assert model.floor_us(p) == (pytest.approx(1e6 * moved / model.COPY), "memory")
    dense = row | {"groups": 1, "C": 1024, "K": 1024, "filter": [1, 1], "pad": [0, 0]}
    p = predicted.problem(dense, "float16", True, 1 << 10, bias="float16")
    us, bound = model.floor_us(p)
    assert bound == "arithmetic" and us == pytest.approx(2e6 * (1 << 10) * 16 * 1024**2 / 654.21e12, rel=1e-4)


def test_the_command_prints_the_table():
    command = [sys.executable, "benchmarks/predicted.py", "--rows"]
    done = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout[-500:]
    assert done.stdout.count("PREDICTED by a model") == 2 and "mobilenet_v2 float16 batch 256" in done.stdout


def test_geometric_mean(predicted):
    rows = [{"of_floor": 0.5}, {"of_floor": 0.125}]
    assert predicted.geomean(rows) == pytest.approx(0.25)
    assert predicted.errors([{"error": 1.0}, {}]) == [log(2)]
