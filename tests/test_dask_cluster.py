"""Dask on a cluster of worker processes on the loopback: equal results, a worker killed, one model per worker."""

import os
import signal
import warnings

import dask
import dask.array as da
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpu_conv
import gpu_conv.dask as gd
from gpu_conv.dask import model as models
from gpu_conv.onnx import ModelError, load

from .dask_configurations import Draw, bits

distributed = pytest.importorskip("distributed", exc_type=ImportError)  # or a package that it needs

WORKERS = 3


@pytest.fixture(scope="module")
def client():
    """Spawned processes, one thread each. The dashboard stays off, for it needs a package more."""
    quiet = {"distributed.worker.memory.terminate": False, "distributed.admin.log-length": 0}
    with warnings.catch_warnings(), dask.config.set(quiet):
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(
                n_workers=WORKERS, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client


def whole_numbers(*shape, dtype=np.float32):
    """Every sum of few of them is exact."""
    return np.random.default_rng(shape).integers(-4, 5, shape).astype(dtype)


def test_random_configurations(client, record_property, seed):
    record_property("seed", seed)
    wanted, tiled = [], []
    for number in range(6):
        made = Draw(np.random.default_rng([seed, number])).configuration()
        try:
            wanted.append(made.whole())
        except ValueError:
            continue
        tiled.append(made.tiled())
    got = client.compute(tiled, sync=True)
    assert [bits(a) for a in got] == [bits(a) for a in wanted]


def test_halos_move_between_workers(client):
    """The input lies spread over the workers; the tiles fetch the strips of their neighbours."""
    x, w = whole_numbers(1, 4, 120, 130), whole_numbers(8, 4, 5, 5)
    spread = client.persist(da.from_array(x, chunks=(1, 2, 37, 64)))
    distributed.wait(spread)
    y = gd.conv2d(spread, w, strides=2, dilations=2, padding=((4, 3), (0, 5)))
    assert bits(y.compute()) == bits(gpu_conv.conv2d(x, w, strides=2, dilations=2, padding=((4, 3), (0, 5))))


def fatal(block, marker, block_info=None):
    """The block itself; the first process that makes the block in the middle dies of it."""
    if block_info[0]["chunk-location"] == (0, 0, 2, 2) and not os.path.exists(marker):
        with open(marker, "w") as file:
            file.write(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return block


def test_a_worker_killed_in_the_middle(client, tmp_path):
    x, w = whole_numbers(1, 3, 100, 100), whole_numbers(5, 3, 3, 3)
    marker = tmp_path / "killed"
    before = set(client.run(os.getpid).values())
    fed = da.from_array(x, chunks=(1, 3, 20, 20)).map_blocks(fatal, str(marker), meta=np.empty((0,) * 4, np.float32))
    got = gd.conv2d(fed, w, padding=1).compute()
    assert bits(got) == bits(gpu_conv.conv2d(x, w, padding=1))
    killed = int(marker.read_text())
    assert killed in before
    client.wait_for_workers(WORKERS, timeout=60)
    assert killed not in client.run(os.getpid).values()


# -------------------------------------------------------------------------------------------------------------- models


def network(batch="n", size=(8, "width"), declared=True):
    """x ``[batch, 2, 8, width]`` -> relu(conv) and its mean per channel."""
    sizes = [batch, 3, *size]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes if declared else None),
        helper.make_tensor_value_info("mean", TensorProto.FLOAT, [batch, 3, 1, 1]),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"]),
            helper.make_node("GlobalAveragePool", ["y"], ["mean"]),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 2, *size])],
        outputs,
        [numpy_helper.from_array(whole_numbers(3, 2, 3, 3), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def loaded():
    """What this process has loaded."""
    return [id(model) for model in models._loaded.values()]


def test_one_model_per_worker(client, tmp_path):
    path = tmp_path / "network.onnx"
    onnx.save(network(), path)
    x = whole_numbers(40, 2, 8, 6)
    want = load(path)(x)
    before = client.run(loaded)
    for source in (path, path.read_bytes(), network()):
        outputs = gd.map_model(source, da.from_array(x, chunks=(3, 1, 8, 6)))
        assert {name: y.shape for name, y in outputs.items()} == {"y": (40, 3, 8, 6), "mean": (40, 3, 1, 1)}
        got = client.compute(outputs, sync=True)
        assert all(bits(got[name]) == bits(want[name]) for name in want)
    again = client.run(loaded)
    # the path is one model, its bytes another, whichever way they came; each was loaded at most once per process
    assert all(set(before[w]) <= set(again[w]) and len(again[w]) <= len(before[w]) + 2 for w in before)
    client.compute(gd.map_model(path, da.from_array(x, chunks=(5, 2, 8, 6))), sync=True)
    assert all(set(again[w]) <= set(now) and len(now) <= 2 for w, now in client.run(loaded).items())


def test_two_inputs_of_a_model():
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "k"]) for name in ("a", "b", "sum")]
    model = helper.make_model(
        helper.make_graph(nodes, "test", ports[:2], ports[2:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    a, b = whole_numbers(7, 4), whole_numbers(7, 4) + 1
    (total,) = gd.map_model(model, {"a": da.from_array(a, chunks=3), "b": da.from_array(b, chunks=2)}).values()
    assert total.chunks == ((3, 3, 1), (4,)) and total.dtype == np.float32
    np.testing.assert_array_equal(total.compute(scheduler="sync"), a + b)


X = da.zeros((6, 2, 8, 5), chunks=4, dtype=np.float32)
WRONG = {
    "not dask": (lambda: gd.map_model(network(), np.zeros((1, 2, 8, 5))), TypeError, "dict of dask arrays named 'x'"),
    "not dask in a dict": (lambda: gd.map_model(network(), {"x": 1}), TypeError, "input 'x' must be a dask array"),
    "name": (lambda: gd.map_model(network(), {"z": X}), ModelError, "no input 'z'"),
    "dtype": (lambda: gd.map_model(network(), X.astype(np.float64)), TypeError, "float64"),
    "channels": (lambda: gd.map_model(network(), X[:, :1]), ModelError, "axis 1 must be 2"),
    "fixed batch": (lambda: gd.map_model(network(batch=4), X), ModelError, "axis 0 must be 4"),
    "undeclared": (lambda: gd.map_model(network(declared=False), X), ModelError, "'y'.*infer_shapes"),
    "unknown size": (lambda: gd.map_model(network(size=(8, None)), X), ModelError, "'y'.*declared with all its sizes"),
    "no file": (lambda: gd.map_model("missing.onnx", X), FileNotFoundError, "missing.onnx"),
    "no model": (lambda: gd.map_model(3, X), TypeError, "model must be a path, bytes or an onnx.ModelProto, got int"),
    "lengths": (lambda: gd.map_model(network(), {"x": X, "z": X[:2]}), ValueError, "first axes of one length"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_models_fail_before_any_work(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
