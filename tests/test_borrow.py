"""Devices and streams of borrowed arrays, on stand-ins for CuPy and PyTorch that write down what they are asked."""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from gpu_conv.borrow import borrow
from gpu_conv.cuda import CudaUnavailable, device

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class FakeCupy(ModuleType):
    """Arrays are NumPy arrays with a device; every act is logged with the device and the stream that are current."""

    class ndarray:
        def __init__(self, host, number, owner=None):
            self.host, self.owner = host, owner
            self.data = SimpleNamespace(device_id=number, ptr=host.ctypes.data)
            self.dtype, self.shape = host.dtype, host.shape

        def view(self, dtype):
            return type(self)(self.host.view(dtype), self.data.device_id, self.owner)

    def __init__(self):
        super().__init__("cupy")
        self.log, self.device, self.stream = [], 0, "null"
        runtime = SimpleNamespace(
            getDevice=lambda: self.device,
            getDeviceCount=lambda: 2,
            pointerGetAttributes=lambda address: SimpleNamespace(device=1),
            CUDARuntimeError=RuntimeError,
        )
        stream = SimpleNamespace(synchronize=lambda: self.act("synchronize"))
        self.cuda = SimpleNamespace(
            Device=lambda number: self.within("device", number),
            Stream=SimpleNamespace(from_external=lambda other: self.within("stream", other.__cuda_stream__())),
            get_current_stream=lambda: stream,
            runtime=runtime,
        )

    @contextmanager
    def within(self, name, value):
        before = getattr(self, name)
        setattr(self, name, value)
        try:
            yield
        finally:
            setattr(self, name, before)

    def act(self, what):
        self.log.append((what, self.device, self.stream))

    def from_dlpack(self, array):
        self.act("from_dlpack")
        assert array.__dlpack_device__()[0] == 2
        return self.ndarray(np.asarray(array.values), self.device, array)

    def asarray(self, array):
        self.act("asarray")
        return self.ndarray(np.asarray(array.values), self.device, array)

    def empty(self, shape, dtype):
        self.act("empty")
        return self.ndarray(np.empty(shape, dtype), self.device)


class Tensor:
    """A PyTorch tensor on ``cuda:number``."""

    def __init__(self, values, number, dtype="torch.float32"):
        self.values, self.dtype = values, dtype
        self.device = SimpleNamespace(type="cuda", index=number)
        self.requires_grad, self.layout = False, "strided"

    def is_conj(self):
        return False

    is_neg = is_conj

    def detach(self):
        return self

    def view(self, dtype):
        return Tensor(self.values, self.device.index, dtype)

    def __dlpack_device__(self):
        return 2, self.device.index

    def __dlpack__(self, **arguments):
        raise AssertionError("only CuPy asks for it")


@pytest.fixture
def cupy(monkeypatch):
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    device._cupy.cache_clear()
    yield fake
    assert (fake.device, fake.stream) == (0, "null"), "device and stream are as they were"
    device._cupy.cache_clear()


@pytest.fixture
def torch(monkeypatch, cupy):
    fake = ModuleType("torch")
    fake.Tensor, fake.strided, fake.bfloat16, fake.int16, fake.float32 = Tensor, "strided", "bf", "i2", "f4"
    fake.is_grad_enabled = lambda: True
    fake.cuda = SimpleNamespace(current_stream=lambda number: SimpleNamespace(cuda_stream=0xA0 + number))

    def empty(shape, dtype, device):
        cupy.act("torch.empty")
        return Tensor(np.empty(shape, np.float32), device.index, dtype)

    fake.empty = empty
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def values(dtype=np.float32):
    return np.arange(6).astype(dtype).reshape(1, 2, 3)


def test_tensors_are_seen_on_their_device_and_on_pytorchs_stream(cupy, torch):
    x, w = Tensor(values(), 1), Tensor(values(), 1)
    with borrow({"x": x, "w": w, "bias": None, "strides": 2}) as lent:
        assert (lent.kind, lent.library) == ("torch", "cupy")
        assert (cupy.device, cupy.stream) == (1, (0, 0xA1))
        seen = lent.arguments["x"]
        assert isinstance(seen, cupy.ndarray)
        assert seen.owner is x
        assert (lent.arguments["bias"], lent.arguments["strides"]) == (None, 2)
        result = lent.empty((1, 2), np.dtype(np.float32))
        given = lent.give(result)
    assert isinstance(given, Tensor)
    assert result.owner is given
    where = (1, (0, 0xA1))
    assert cupy.log == [("from_dlpack", *where)] * 2 + [("torch.empty", *where), ("from_dlpack", *where)]


def test_bfloat16_tensors_travel_as_int16(cupy, torch):
    x = Tensor(values(BFLOAT16).view(np.int16), 0, "bf")
    with borrow({"x": x}) as lent:
        seen = lent.arguments["x"]
        assert seen.owner.dtype == "i2"
        assert seen.dtype == BFLOAT16
        np.testing.assert_array_equal(seen.host, values(BFLOAT16))


def test_a_repeated_call_runs_on_the_stream_of_its_time(cupy, torch):
    lent = borrow({"x": Tensor(values(), 1)})
    assert lent.bindable
    torch.cuda.current_stream = lambda number: SimpleNamespace(cuda_stream=0xBEEF)
    with lent.place():
        assert (cupy.device, cupy.stream) == (1, (0, 0xBEEF))


def test_tensors_on_two_devices(cupy, torch):
    with pytest.raises(ValueError, match="x is on cuda:0, w is on cuda:1"):
        borrow({"x": Tensor(values(), 0), "w": Tensor(values(), 1)})
    assert cupy.log == []


def test_a_view_that_fails_leaves_the_device(cupy, torch, monkeypatch):
    def fail(array):
        raise BufferError("no")

    monkeypatch.setattr(cupy, "from_dlpack", fail)
    with pytest.raises(BufferError), borrow({"x": Tensor(values(), 1)}):
        pass


def test_without_cupy_a_cuda_tensor_says_what_to_install(torch, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    device._cupy.cache_clear()
    with pytest.raises(CudaUnavailable, match=r"gpu-conv\[cuda13\]"), borrow({"x": Tensor(values(), 1)}):
        pass


def test_cupy_arrays_decide_on_the_device(cupy):
    here, there = cupy.ndarray(values(), 0), cupy.ndarray(values(), 1)
    for array in (here, there):
        with borrow({"x": array, "residual": None}) as lent:
            assert lent.empty is None
            assert lent.arguments["x"] is array
            assert lent.give(array) is array
            assert (cupy.device, cupy.stream) == (array.data.device_id, "null")
    with borrow({"x": here}) as lent:
        assert lent.place() is lent.place(), "nothing is entered where nothing has to change"


class Exported:
    """An array of some library on ``cuda:1`` that speaks DLPack."""

    def __init__(self, values, dtype="float32"):
        self.values, self.dtype, self.shape = values, dtype, values.shape

    def __dlpack_device__(self):
        return 2, 1

    def __dlpack__(self, **arguments):
        raise AssertionError("only CuPy asks for it")


def test_dlpack_orders_the_start_and_the_call_waits_for_its_end(cupy):
    with borrow({"x": Exported(values())}) as lent:
        assert (cupy.device, cupy.stream, lent.bindable) == (1, "null", False)
        result = lent.empty((2, 2), np.dtype(np.float32))
        assert lent.give(result) is result, "a library without from_dlpack gets a CuPy array"
    assert [what for what, *_ in cupy.log] == ["from_dlpack", "empty", "synchronize"]
    assert all((number, stream) == (1, "null") for _, number, stream in cupy.log)


def test_numba_arrays_come_by_the_cuda_array_interface_and_go_back_as_such(cupy, monkeypatch):
    numba = ModuleType("numba")
    numba.cuda = SimpleNamespace(as_cuda_array=lambda array: ("numba", array))
    monkeypatch.setitem(sys.modules, "numba", numba)

    class DeviceNDArray:
        __module__ = "numba.cuda.cudadrv.devicearray"

        def __init__(self, address):
            self.__cuda_array_interface__ = {"data": (address, False)}
            self.values = values()

    x, out = DeviceNDArray(64), DeviceNDArray(128)
    with borrow({"x": x}) as lent:
        assert (lent.kind, cupy.device) == ("numba", 1)
        result = lent.empty((2,), np.dtype(np.float32))
        assert lent.give(result) == ("numba", result)
    assert [what for what, *_ in cupy.log] == ["asarray", "empty", "synchronize"]
    with borrow({"x": x, "out": out}) as lent:
        assert lent.give(lent.arguments["out"]) is out
    with borrow({"x": DeviceNDArray(0)}):
        assert cupy.device == 0, "an empty array has no address: the current device"
