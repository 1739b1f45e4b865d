"""Threads, fork, spawn, several GPUs: results bitwise equal to the serial run, and no shared state without a lock."""

import ast
import hashlib
import multiprocessing
import os
import random
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gpu_conv
import gpu_conv.onnx
from gpu_conv.cuda import compiler, device
from gpu_conv.locks import new_lock
from tests.cuda import tiny
from tests.cuda.fake_cupy import Array, FakeCupy, Pointer
from tests.graph_models import model_of, normal

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")

THREADS, ROUNDS = 8, 3
PACKAGE = Path(gpu_conv.__file__).parent


def convolutions():
    """Every strategy of NumPy and two kernels, as functions of nothing."""
    x, xt = normal(2, 16, 20, 20), normal(1, 8, 7, 7)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    filters = {
        "depthwise": (16, 1, 3, 3),
        "grouped": (24, 4, 3, 3),
        "pointwise": (24, 16, 1, 1),
        "dense": (8, 16, 3, 3),
    }
    jobs = {}
    for name, shape in filters.items():
        w = normal(*shape)
        options = dict(groups=16 // shape[1], padding=shape[2] // 2, activation="silu")
        layer = gpu_conv.Conv(w, normal(shape[0]), **options)
        jobs[name] = lambda w=w, o=options: gpu_conv.conv(x, w, **o)
        jobs[f"{name} nhwc"] = lambda w=w, o=options: gpu_conv.conv(last, w, input_layout="nhwc", **o)
        jobs[f"{name} layer"] = lambda layer=layer: layer(x)
        jobs[f"{name} half"] = lambda w=w, o=options: gpu_conv.conv(x.astype("f2"), w.astype("f2"), **o)
    jobs["transposed"] = lambda: gpu_conv.conv_transpose(xt, normal(8, 4, 4, 4), strides=2, padding=1)
    numbers = (normal(1, 8, 9, 9) * 40).astype(np.int8), (normal(8, 1, 3, 3) * 40).astype(np.int8)
    jobs["integers"] = lambda: gpu_conv.conv(*numbers, groups=8, x_zero_point=3)
    nodes = [onnx_node("Conv", "x", "w", "a", pads=[1] * 4), onnx_node("Relu", "a", "y")]
    model = gpu_conv.onnx.load(
        model_of(nodes, {"x": (np.float32, ["n", 16, 20, 20])}, ["y"], {"w": normal(8, 16, 3, 3)})
    )
    jobs["model"] = lambda: model(x)["y"]
    return jobs


def onnx_node(op, *names, **attributes):
    from onnx import helper

    return helper.make_node(op, names[:-1], names[-1:], **attributes)


def emulations():
    x = normal(1, 8, 6, 6)
    filters = {"emulated depthwise": (8, 1, 3, 3), "emulated dense": (4, 8, 3, 3)}
    return {
        name: lambda shape=shape: gpu_conv.conv(x, normal(*shape), groups=8 // shape[1], padding=1, device="emulator")
        for name, shape in filters.items()
    }


def digests(jobs):
    return {name: hashlib.sha256(job().tobytes()).hexdigest() for name, job in jobs.items()}


@pytest.fixture
def impatient():
    """Threads change places every 10 us."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def stress(jobs, threads, rounds):
    """Every thread does every job ``rounds`` times in an order of its own; the results that differ from ``want``."""
    start = threading.Barrier(threads)

    def work(number):
        order = list(jobs) * rounds
        random.Random(number).shuffle(order)
        start.wait()
        return [(name, hashlib.sha256(jobs[name]().tobytes()).hexdigest()) for name in order]

    with ThreadPoolExecutor(threads) as pool:
        return [result for results in pool.map(work, range(threads)) for result in results]


def test_threads_compute_what_one_thread_computes(impatient):
    jobs = convolutions()
    found = stress(jobs, THREADS, ROUNDS)  # first, so that plans are made in the crowd
    want = digests(jobs)
    assert len(found) == THREADS * ROUNDS * len(jobs)
    assert {name for name, digest in found if digest != want[name]} == set()


def race(function, inputs, rounds):
    """``function`` of every input, in a thread each and ``rounds`` times: what came out for each of them."""
    start = threading.Barrier(len(inputs))

    def work(x):
        start.wait()
        return {function(x).tobytes() for _ in range(rounds)}

    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(work, inputs))


def test_threads_of_a_model_do_not_share_its_buffers(impatient):
    """A plan owns its buffers: one call at a time, or a thread would find the numbers of another."""
    nodes = [onnx_node("Conv", "x", "w", "a", pads=[1] * 4), onnx_node("Exp", "a", "b"), onnx_node("Tanh", "b", "y")]
    model = gpu_conv.onnx.load(model_of(nodes, {"x": (np.float32, [1, 4, 40, 40])}, ["y"], {"w": normal(4, 4, 3, 3)}))
    inputs = [np.full((1, 4, 40, 40), n / 8, np.float32) for n in range(THREADS)]
    found = race(lambda x: model(x)["y"], inputs, 20)
    assert found == [{model(x)["y"].tobytes()} for x in inputs]


class Hesitant(dict):
    """A dictionary between whose first key and its removal another thread always has its turn."""

    def __iter__(self):
        keys = list(self.keys())
        time.sleep(1e-3)
        return iter(keys)


def test_threads_of_a_layer_that_forgets_plans(monkeypatch):
    """Each geometry pushes out the plan of another, which a thread may be about to push out as well."""
    monkeypatch.setattr(gpu_conv.layer, "_LIMIT", 1)
    layer = gpu_conv.Conv(normal(2, 2, 1, 1))
    layer._plans = Hesitant()
    inputs = [normal(1, 2, 3, n + 3) for n in range(THREADS)]
    found = race(layer, inputs, 5)
    assert found == [{layer(x).tobytes()} for x in inputs]
    assert len(layer._plans) == 1


def test_threads_share_emulated_kernels(impatient):
    pytest.importorskip("cuda.bindings.nvrtc")
    jobs = emulations()
    found = stress(jobs, 4, 1)
    want = digests(jobs)
    assert {name for name, digest in found if digest != want[name]} == set()


# ------------------------------------------------------------------------------------------------------------ processes


def in_a_fork(work):
    """Exit status of a child that runs ``work``; killed after 20 s, which is how a held lock shows."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    timer = threading.Timer(20, os.kill, (child, 9))
    timer.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        timer.cancel()


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
JAX_WARNS = r"ignore:os.fork\(\) was called:RuntimeWarning"  # at every fork of a process that has loaded it


@fork
@pytest.mark.filterwarnings(JAX_WARNS)
def test_forks_of_a_process_whose_threads_compute_get_the_same_results():
    jobs = convolutions()
    want, over = digests(jobs), threading.Event()

    def busy():
        while not over.is_set():
            digests(jobs)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert [in_a_fork(lambda: digests(jobs) == want) for _ in range(4)] == [0] * 4
    finally:
        over.set()
        for thread in threads:
            thread.join()


@fork
@pytest.mark.filterwarnings(JAX_WARNS)
def test_a_fork_does_not_wait_for_a_thread_that_it_left_behind(monkeypatch):
    """A thread of the parent compiles, runs a model and a layer while the process forks: its locks stay with it."""
    jobs = convolutions()
    model = next(c.cell_contents for c in jobs["model"].__closure__ if isinstance(c.cell_contents, gpu_conv.onnx.Model))
    slot = compiler._slot(("source", "k<1>", "compute_80"))
    monkeypatch.setattr(compiler, "_from_disk_or_nvrtc", lambda *key: key)
    held = [slot.lock, compiler._slots_lock, model._executor._lock, new_lock()]
    for lock in held:
        lock.acquire()

    def work():
        return (
            compiler.compile("source", "k<1>", "compute_80") and jobs["model"]() is not None and held[-1].acquire(False)
        )

    try:
        assert in_a_fork(work) == 0
        assert all(lock.locked() for lock in held), "the parent's own locks stay"
    finally:
        for lock in held:
            lock.release()


def spawned(seed):
    """In a process of its own."""
    return digests(convolutions())


def test_spawned_processes_get_the_same_results():
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(spawned, range(2)))
    assert results == [digests(convolutions())] * 2


# --------------------------------------------------------------------------------------------------------- several GPUs


class EightGpus(FakeCupy):
    """The current device belongs to the thread, as in CUDA."""

    local = threading.local()

    @property
    def device(self):
        return getattr(self.local, "device", 0)

    @device.setter
    def device(self, number):
        self.local.device = number

    def _device_type(self):
        two = super()._device_type()
        self.count = 8

        class Device(two):
            def __init__(device, number):
                two.__init__(device, number % 2)
                device.number = number

        return Device


def test_threads_of_several_gpus_launch_on_their_own(monkeypatch, impatient):
    pytest.importorskip("cuda.bindings.nvrtc")
    fake = EightGpus()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(device, "load", lambda name: tiny.TEXT)
    caches = (device._cupy, device._target, device._load, device._prepare)
    for cached in caches:
        cached.cache_clear()
    start = threading.Barrier(8)

    def work(gpu):
        operands = {"x": Array(Pointer(0x1000 + gpu, gpu)), "y": Array(Pointer(0x2000 + gpu, gpu))}
        start.wait()
        for count in range(50):
            device.run(tiny.launch(count=count, workspace_bytes=64), operands)
        return fake.device

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [0] * 8
    for cached in caches:
        cached.cache_clear()
    calls = [entry for entry in fake.log if not isinstance(entry, tuple)]
    assert len(calls) == 8 * 50
    for call in calls:
        gpu = call.args[0].device_id
        assert {gpu} == {call.device, call.kernel.device_id, call.args[6].device_id, call.args[7].device_id}
        assert call.args[6].ptr == 0x2000 + gpu


# -------------------------------------------------------------------------------------------------------- shared state

CHANGES = {
    "add",
    "append",
    "clear",
    "extend",
    "insert",
    "move_to_end",
    "pop",
    "popitem",
    "remove",
    "setdefault",
    "update",
}
# Filled by decorators while the module is imported, which Python's import lock orders; read only afterwards.
AT_IMPORT = {("gpu_conv/graph/ops/registry.py", "OPS")}


def unlocked_changes(tree):
    """Names of a module that functions change outside of a ``with`` on a lock."""
    names = {
        target.id
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    found = set()

    def is_ours(node):
        return isinstance(node, ast.Name) and node.id in names

    def visit(node, inside, locked):
        if isinstance(node, ast.With):
            locked = locked or any("lock" in ast.unparse(item) or "guard" in ast.unparse(item) for item in node.items)
        inside = inside or isinstance(node, (ast.FunctionDef, ast.Lambda))
        if inside and not locked:
            if isinstance(node, ast.Global):
                found.update(node.names)
            elif isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, (ast.Store, ast.Del)):
                found.update([node.value.id] if is_ours(node.value) else [])
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
                found.update([node.func.value.id] if is_ours(node.func.value) else [])
        for child in ast.iter_child_nodes(node):
            visit(child, inside, locked)

    visit(tree, False, False)
    return found


def test_no_module_changes_its_state_without_a_lock():
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE.parent).as_posix()
        found |= {(name, changed) for changed in unlocked_changes(ast.parse(path.read_text()))}
    # The arena's attributes belong to the thread: threading.local.
    assert found - AT_IMPORT == {("gpu_conv/cpu/scratch.py", "_arena")}


@pytest.mark.parametrize(
    "body", ["_known[1] = 2", "del _known[1]", "_known.update(a=1)", "global _known\n    _known = 3", "_known.x = 1"]
)
def test_the_audit_sees_every_kind_of_change(body):
    assert unlocked_changes(ast.parse(f"_known = {{}}\ndef f():\n    {body}")) == {"_known"}
    assert unlocked_changes(ast.parse(f"_known = {{}}\ndef f():\n  with _lock:\n    {body}")) == set()
