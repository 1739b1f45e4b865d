"""Files of others: refused or read, within limits, nothing outside the folder, no word of them in CUDA text."""

import resource
import sys
import time
import warnings

import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from onnx import helper

import gpu_conv
import gpu_conv.onnx
from gpu_conv.cuda import compiler
from gpu_conv.onnx import Limits, ModelError, load
from tests.fuzz import targets
from tests.fuzz.test_convolutions import run
from tests.graph_models import model_of, normal
from tests.test_onnx_errors import conv, deep_branches, external

SEEDS = targets.seeds()
CASES = {targets.onnx: 200, targets.weights: 200, targets.picture: 100}


@st.composite
def mutated(draw, seeds):
    """A seed with a few bytes changed, pieces cut out, doubled, or taken from another."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, max(len(data) - 1, 0))), draw(st.integers(1, 16))
        how = draw(st.sampled_from(("byte", "byte", "cut", "double", "foreign", "end")))
        if how == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[at : at + length]
        elif how == "double":
            data[at:at] = data[at : at + length]
        elif how == "foreign":
            other = draw(st.sampled_from(seeds))
            data[at:at] = other[at % len(other) :][:length]
        else:
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("target", SEEDS, ids=lambda target: target.__name__)
def test_broken_files_are_read_or_refused(target, seed, record_property):
    record_property("seed", seed)
    opened = []
    watching = True

    def hook(event, arguments):
        if watching and event == "open" and isinstance(arguments[0], (str, bytes)):
            opened.append(str(arguments[0]))

    for data in SEEDS[target]:
        target(data)  # imports what it needs
    sys.addaudithook(hook)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of pictures with damaged parts
        run(CASES[target], mutated(SEEDS[target]), target, seed)
    watching = False
    assert time.process_time() - start < 60, "a file that hangs its reader"
    assert [name for name in opened if "/w.bin" in name] == []


# ------------------------------------------------------------------------------------------------------------- limits


def chain(count):
    nodes = [helper.make_node("Relu", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(count)]
    return model_of(nodes, {"x": (np.float32, [1])}, [f"v{count}"], check=False)


LIMITS = {
    "file": (conv(), Limits(file_bytes=100), "more than 100 bytes"),
    "tensors": (conv(), Limits(tensor_bytes=4 * 4 * 9 * 4 - 1), "'w'.*above the limit of 575"),
    "nodes": (chain(11), Limits(nodes=10), "more nodes than the limit of 10"),
    "depth": (deep_branches(3), Limits(depth=2), "nested deeper than 2"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_each_limit_is_kept_and_named(limit, tmp_path):
    model, limits, message = LIMITS[limit]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    for source in (tmp_path / "model.onnx", model.SerializeToString()):
        load(source)
        with pytest.raises(ModelError, match=message):
            load(source, limits=limits)


def test_external_data_can_be_forbidden(tmp_path):
    (tmp_path / "w.bin").write_bytes(normal(4, 4, 3, 3).tobytes())
    path = external(tmp_path, "w.bin")
    load(path)
    with pytest.raises(ModelError, match="Limits\\(external_data=False\\) refuses"):
        load(path, limits=Limits(external_data=False))


@pytest.mark.parametrize("wrong", [{"nodes": -1}, {"depth": 1.5}, {"tensor_bytes": True}])
def test_a_limit_is_a_count(wrong):
    with pytest.raises(ValueError, match=f"limit {next(iter(wrong))} must be an integer of at least 0"):
        Limits(**wrong)


def bomb(kind):
    """A few hundred bytes that ask for gigabytes."""
    constants = {"ones": np.ones((60000, 1), np.float32), "row": np.ones((1, 60000), np.float32)}
    nodes = {
        "outer sum": [helper.make_node("Add", ["ones", "row"], ["y"])],
        "outer product": [helper.make_node("MatMul", ["ones", "row"], ["y"])],
        "fill": [helper.make_node("ConstantOfShape", ["shape"], ["y"])],
        "expand": [helper.make_node("Expand", ["ones", "shape"], ["y"])],
        "pad": [helper.make_node("Conv", ["image", "w"], ["y"], pads=[20000] * 4)],
    }
    doubled = [helper.make_node("Concat", [f"d{i}"] * 2, [f"d{i + 1}"], axis=0) for i in range(40)]
    nodes["doubling"] = [helper.make_node("Identity", ["ones"], ["d0"]), *doubled]
    constants |= {
        "shape": np.array([60000, 15000]),
        "image": np.ones((1, 1, 2, 2), "f4"),
        "w": np.ones((1, 1, 1, 1), "f4"),
    }
    inputs = {"x": (np.float32, [1])}
    return model_of(nodes[kind], inputs, ["d40" if kind == "doubling" else "y"], constants, check=False)


@pytest.mark.parametrize("kind", ["outer sum", "outer product", "fill", "expand", "pad", "doubling"])
def test_loading_a_bomb_takes_no_gigabyte(kind):
    """Constants are computed when a model is loaded, but only small ones: within the memory that ``Limits`` states."""
    data = bomb(kind).SerializeToString()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load(data)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 1024, f"{grown:.0f} MiB"


def test_many_nodes_and_branches_load_in_linear_time():
    def seconds(count):
        leaf = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "leaf", [], [onnx.ValueInfoProto(name="r")])
        nodes = [
            helper.make_node("If", ["flag"], [f"o{i}"], then_branch=leaf, else_branch=leaf, name=f"if {i}")
            for i in range(count)
        ]
        nodes.append(helper.make_node("Sum", [f"o{i}" for i in range(count)], ["y"]))
        inputs = {"x": (np.float32, [1]), "flag": (np.bool_, [])}
        data = model_of(nodes, inputs, ["y"], check=False).SerializeToString()
        start = time.process_time()
        load(data)
        return time.process_time() - start

    seconds(50)
    small, large = seconds(250), seconds(2000)
    assert large < 8 * small * 3 + 0.5, (small, large)


# ---------------------------------------------------------------------------------------------------------- CUDA text

POISON = 'x"); __trap(); //'


def test_no_word_of_the_user_reaches_cuda_text(monkeypatch):
    """All names in a model are hostile; what is compiled is a file of kernels/ and numbers and types from a list."""
    pytest.importorskip("cuda.bindings.nvrtc")
    import re

    seen = []
    real = compiler.compile

    def compile(source, name_expression, arch):
        seen.append((source, name_expression, arch))
        return real(source, name_expression, arch)

    monkeypatch.setattr(compiler, "compile", compile)
    node = helper.make_node("Conv", [POISON, POISON + "w"], [POISON + "y"], name=POISON, pads=[1] * 4, group=4)
    inputs = {POISON: (np.float32, [POISON + "n", 4, 6, 6])}
    model = model_of([node], inputs, [POISON + "y"], {POISON + "w": normal(4, 1, 3, 3)}, check=False)
    model.graph.name = model.producer_name = model.doc_string = POISON
    x = normal(1, 4, 6, 6)
    y = load(model, device="emulator")({POISON: x})[POISON + "y"]
    np.testing.assert_allclose(y, gpu_conv.conv(x, normal(4, 1, 3, 3), padding=1, groups=4), rtol=1e-5, atol=1e-6)
    from gpu_conv.cuda.source import KERNELS
    from gpu_conv.cuda.source import load as text_of

    shipped = {text_of(path.name) for path in KERNELS.glob("*.cu")}
    assert seen
    for source, expression, arch in seen:
        assert source in shipped
        assert re.fullmatch(r"[a-z_0-9]+<[A-Za-z_0-9<>, -]*>", expression)
        assert re.fullmatch(r"(sm|compute)_\d+[af]?", arch)


@pytest.mark.parametrize("word", [POISON, "relu;", "relu\n#include <x>", "../direct", "direct<int>", "nchw\0"])
@pytest.mark.parametrize("option", ["activation", "input_layout", "filter_layout", "precision", "kernel", "padding"])
def test_every_option_that_is_a_word_comes_from_a_list(option, word):
    x, w = np.ones((1, 2, 3, 3), np.float32), np.ones((2, 2, 1, 1), np.float32)
    with pytest.raises((ValueError, TypeError)):
        gpu_conv.conv(x, w, device="emulator", **{option: word})
