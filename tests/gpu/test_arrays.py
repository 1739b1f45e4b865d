"""PyTorch, JAX and Numba arrays on the GPU: the same memory, the producer's stream, the same kind out."""

import numpy as np
import pytest

import gpu_conv
from gpu_conv.cuda import device

cupy = pytest.importorskip("cupy")

pytestmark = pytest.mark.gpu


def integers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


X, W, B = integers(2, 6, 9, 8), integers(4, 3, 3, 3, seed=1), integers(4, seed=2)
OPTIONS = dict(groups=2, padding=1, strides=(2, 1), activation="relu")


@pytest.fixture
def launched(monkeypatch):
    """Addresses of the operands, and the stream, of every launch."""
    seen, original = [], device.Ready.__call__

    def call(self, operands):
        addresses = {name: array.data.ptr for name, array in operands.items() if array is not None}
        seen.append((addresses, cupy.cuda.get_current_stream().ptr))
        original(self, operands)

    monkeypatch.setattr(device.Ready, "__call__", call)
    return seen


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_torch(dtype, launched):
    torch = pytest.importorskip("torch")
    x, w, b = (torch.from_numpy(a).to("cuda", getattr(torch, dtype)) for a in (X, W, B))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = gpu_conv.conv2d(x, w, b, **OPTIONS)
        want = torch.nn.functional.conv2d(x.double(), w.double(), b.double(), (2, 1), 1, 1, 2).relu()
        assert torch.equal(y.double(), want)
    ((addresses, where),) = launched
    assert where == stream.cuda_stream
    assert (addresses["x"], addresses["w"], addresses["y"]) == (x.data_ptr(), w.data_ptr(), y.data_ptr())
    assert (type(y), y.dtype, y.device) == (torch.Tensor, x.dtype, x.device)


def test_torch_work_before_and_after_is_ordered():
    """A long product before, on a stream of its own: without its stream the convolution would read stale zeros."""
    torch = pytest.importorskip("torch")
    stream, w = torch.cuda.Stream(), torch.ones(64, 1, 3, 3, device="cuda")
    gpu_conv.conv2d(torch.zeros(8, 64, 128, 128, device="cuda"), w, groups=64, padding=1)  # compiled by now
    heavy = torch.ones(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        x = torch.zeros(8, 64, 128, 128, device="cuda")
        for _ in range(4):
            heavy @ heavy
        x.fill_(1)
        y = gpu_conv.conv2d(x, w, groups=64, padding=1)
        del x  # the memory goes back to PyTorch, whose stream orders its next use
        torch.zeros(8, 64, 128, 128, device="cuda")
        total = y.sum()
    assert float(total) == 8 * 64 * (126 * 126 * 9 + 4 * 126 * 6 + 4 * 4)


def test_torch_in_a_cuda_graph():
    torch = pytest.importorskip("torch")
    x, w = torch.from_numpy(X).cuda(), torch.from_numpy(W).cuda()
    gpu_conv.conv2d(x, w, groups=2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gpu_conv.conv2d(x, w, groups=2)
    x += 1
    graph.replay()
    assert torch.equal(y, gpu_conv.conv2d(x, w, groups=2))


def test_torch_operator_compiled():
    torch = pytest.importorskip("torch")
    import gpu_conv.torch as operators

    x, w, b = (torch.from_numpy(a).cuda() for a in (X, W, B))
    compiled = torch.compile(lambda x: operators.conv(x, w, b, **OPTIONS) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x).cpu(), torch.from_numpy(gpu_conv.conv2d(X, W, B, **OPTIONS)) + 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax(dtype, launched):
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX without CUDA")
    x, w, b = (jax.numpy.asarray(a).astype(dtype) for a in (X, W, B))
    y = gpu_conv.conv2d(x, w, b, **OPTIONS)
    ((addresses, _),) = launched
    assert (addresses["x"], addresses["y"]) == (x.unsafe_buffer_pointer(), y.unsafe_buffer_pointer())
    assert (isinstance(y, jax.Array), y.dtype) == (True, x.dtype)
    np.testing.assert_array_equal(np.asarray(y).astype(np.float32), gpu_conv.conv2d(X, W, B, **OPTIONS))


def test_numba(launched):
    cuda = pytest.importorskip("numba.cuda")
    x, w, b = (cuda.to_device(a) for a in (X, W, B))
    y = gpu_conv.conv2d(x, w, b, **OPTIONS)
    ((addresses, _),) = launched
    assert addresses["x"] == x.__cuda_array_interface__["data"][0]
    assert addresses["y"] == y.__cuda_array_interface__["data"][0]
    assert cuda.is_cuda_array(y) and not isinstance(y, cupy.ndarray)
    np.testing.assert_array_equal(y.copy_to_host(), gpu_conv.conv2d(X, W, B, **OPTIONS))


@pytest.mark.skipif(cupy.cuda.is_available() and cupy.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
def test_the_arrays_decide_on_the_device():
    with cupy.cuda.Device(1):
        x, w = cupy.asarray(X), cupy.asarray(W)
    y = gpu_conv.conv2d(x, w, groups=2)
    assert (y.device.id, cupy.cuda.runtime.getDevice()) == (1, 0)
    with pytest.raises(ValueError, match="one device"):
        gpu_conv.conv2d(x, cupy.asarray(W), groups=2)


def test_cupy_on_a_stream_of_its_own(launched):
    x, w = cupy.asarray(X), cupy.asarray(W)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.wait_event(cupy.cuda.Stream.null.record())
        y = gpu_conv.conv2d(x, w, groups=2)
        assert launched[-1][1] == stream.ptr
        np.testing.assert_array_equal(cupy.asnumpy(y), gpu_conv.conv2d(X, W, groups=2))
