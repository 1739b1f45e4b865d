"""Arrays of other libraries: the same memory in, the same kind out, and never two kinds in one call."""

import ml_dtypes
import numpy as np
import pytest

import gpu_conv
from gpu_conv import adapters
from gpu_conv.borrow import borrow

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def integers(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


X, W, B = integers(2, 6, 9, 8), integers(4, 3, 3, 3, seed=1), integers(4, seed=2)
OPTIONS = dict(groups=2, padding=1, strides=(2, 1), activation="relu")


def expected(dtype=np.float32):
    return gpu_conv.conv2d(X.astype(dtype), W.astype(dtype), B.astype(dtype), **OPTIONS)


def aligned(array):
    """A copy on a cache line: what XLA takes as it is."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.fixture
def computed(monkeypatch):
    """Addresses of the operands of every convolution, as the engine saw them."""
    from gpu_conv import cpu

    seen, original = [], cpu.prepare

    class Spy:
        def __init__(self, inner):
            self.inner = inner

        def run(self, x, y, residual, x_zero_point):
            seen.append({"x": x, "y": y, "residual": residual})
            self.inner.run(x, y, residual, x_zero_point)

    def prepare(problem, w, bias, w_zero_point):
        seen.append({"w": w, "bias": bias})
        return Spy(original(problem, w, bias, w_zero_point))

    monkeypatch.setattr(cpu, "prepare", prepare)

    def address(name):
        *_, array = [record[name] for record in seen if name in record]
        return array.ctypes.data

    return address


# -------------------------------------------------------------------------------------------------------- DLPack alone


class Shared:
    """An array type that speaks DLPack and nothing else."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.shape, self.dtype, self.device = array, array.shape, str(array.dtype), device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **arguments):
        return adapters._exportable(self.array).__dlpack__(**arguments)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BFLOAT16], ids=str)
def test_dlpack_is_read_in_place(dtype, computed):
    x, w, b = X.astype(dtype), W.astype(dtype), B.astype(dtype)
    y = gpu_conv.conv2d(Shared(x), Shared(w), Shared(b), **OPTIONS)
    assert isinstance(y, np.ndarray), "a kind that imports nothing gets what was computed"
    assert (computed("x"), computed("w")) == (x.ctypes.data, w.ctypes.data)
    assert y.dtype == dtype
    want = X.astype(np.float64), W.astype(np.float64), B.astype(np.float64)
    np.testing.assert_array_equal(y.astype(np.float64), gpu_conv.conv2d(*want, **OPTIONS))


def test_a_module_with_from_dlpack_gets_its_own_kind(monkeypatch):
    """The result is imported by the library of the arrays, and aligned as XLA wants it."""
    import sys
    from types import ModuleType

    module = ModuleType("shared_arrays")
    module.from_dlpack = lambda array: ("imported", array)
    monkeypatch.setitem(sys.modules, "shared_arrays", module)
    monkeypatch.setattr(Shared, "__module__", "shared_arrays.core")
    kind, array = gpu_conv.conv2d(Shared(X), Shared(W), Shared(B), **OPTIONS)
    assert kind == "imported"
    assert array.ctypes.data % 64 == 0
    np.testing.assert_array_equal(array, expected())


def test_dlpack_is_written_in_place():
    memory = np.full(expected().shape, np.nan, np.float32)
    out = Shared(memory)
    assert gpu_conv.conv2d(Shared(X), Shared(W), Shared(B), out=out, **OPTIONS) is out
    np.testing.assert_array_equal(memory, expected())
    memory.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match=r"read-?only"):
        gpu_conv.conv2d(Shared(X), Shared(W), Shared(B), out=out, **OPTIONS)


def test_what_cannot_be_borrowed():
    with pytest.raises(TypeError, match="x is a numpy array, w is a tests array"):
        gpu_conv.conv2d(X, Shared(W))
    with pytest.raises(TypeError, match="x is on a device of DLPack's type 4"):
        gpu_conv.conv2d(Shared(X, (4, 0)), Shared(W))
    with pytest.raises(ValueError, match="one device, but x is on the CPU, w is on cuda:1"):
        gpu_conv.conv2d(Shared(X), Shared(W, (2, 1)))
    with pytest.raises(TypeError, match=r"got builtins.list, which has neither DLPack nor the CUDA array interface"):
        gpu_conv.conv2d([[1.0]], W)
    layer = gpu_conv.Conv(W, groups=2)
    layer(X)
    with pytest.raises(TypeError, match="x is a tests array, w is a numpy array"):
        layer(Shared(X))
    with pytest.raises(TypeError, match="bind keeps NumPy, CuPy and PyTorch arrays"):
        gpu_conv.Conv(Shared(W), groups=2).bind(Shared(X))


def test_numpy_costs_next_to_nothing():
    import timeit

    arguments = {"x": X, "w": W, "bias": None}

    def call():
        with borrow(arguments) as lent:
            return lent.give(X)

    assert min(timeit.repeat(call, number=200, repeat=20)) / 200 < 20e-6  # measured: 2 us; for a busy machine


# ------------------------------------------------------------------------------------------------------------- PyTorch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensors(torch, dtype="float32"):
    return tuple(torch.from_numpy(a.copy()).to(getattr(torch, dtype)) for a in (X, W, B))


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_torch_in_and_out(torch, dtype, computed):
    x, w, b = tensors(torch, dtype)
    y = gpu_conv.conv2d(x, w, b, **OPTIONS)
    assert type(y) is torch.Tensor
    assert y.dtype == x.dtype
    assert (computed("x"), computed("w"), computed("y")) == (x.data_ptr(), w.data_ptr(), y.data_ptr())
    want = torch.nn.functional.conv2d(x.double(), w.double(), b.double(), (2, 1), 1, 1, 2).relu()
    assert torch.equal(y.double(), want)


@pytest.mark.peers
def test_torch_views_are_not_copied(torch, computed):
    big = torch.zeros(2, 9, 16, 12)
    x = big[:, ::2, 1:].permute(0, 2, 1, 3)[:, 3:9, :, 2:10:2]  # no axis contiguous
    x += torch.from_numpy(integers(*x.shape))
    w = torch.from_numpy(integers(3, 3, 6, 4)).permute(3, 2, 0, 1)
    y = gpu_conv.conv2d(x, w)
    assert torch.equal(y, torch.nn.functional.conv2d(x, w))
    assert (computed("x"), computed("w")) == (x.data_ptr(), w.data_ptr())


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_writes_into_out(torch, dtype, computed):
    x, w, b = tensors(torch, dtype)
    out = torch.full(expected().shape, torch.nan, dtype=x.dtype)
    assert gpu_conv.conv2d(x, w, b, out=out, **OPTIONS) is out
    assert computed("y") == out.data_ptr()
    np.testing.assert_array_equal(out.float().numpy(), expected())


@pytest.mark.peers
def test_a_layer_of_tensors(torch):
    x, w, b = tensors(torch)
    layer = gpu_conv.Conv(w, b, **OPTIONS)
    for _ in range(2):
        y = layer(x)
        assert type(y) is torch.Tensor
        np.testing.assert_array_equal(y.numpy(), expected())
    assert len(layer._plans) == 1
    bound = layer.bind(x)
    first = bound()
    x += 1
    assert bound().data_ptr() == first.data_ptr()
    assert torch.equal(first, layer(x))
    with pytest.raises(TypeError, match="x is a numpy array, w is a torch array"):
        layer(X)


@pytest.mark.peers
def test_a_torch_dtype_for_the_result(torch):
    x, w, b = tensors(torch)
    y = gpu_conv.conv2d(x, w, b, out_dtype=torch.bfloat16, **OPTIONS)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, torch.from_numpy(expected()).bfloat16())


@pytest.mark.peers
def test_integers_zero_points_and_empty_tensors(torch):
    x, w, _ = tensors(torch, "int8")
    y = gpu_conv.conv2d(x, w, groups=2, x_zero_point=1, w_zero_point=torch.tensor([1, 0, 2, 0]))
    assert y.dtype == torch.int32
    moved = w.double() - torch.tensor([1, 0, 2, 0]).reshape(-1, 1, 1, 1)
    assert torch.equal(y.double(), torch.nn.functional.conv2d(x.double() - 1, moved, groups=2))
    assert gpu_conv.conv2d(x[:0], w, groups=2).shape == (0, 4, 7, 6)


@pytest.mark.peers
def test_the_emulator_takes_tensors_too(torch):
    x, w, b = tensors(torch)
    y = gpu_conv.conv2d(x, w, b, device="emulator", **OPTIONS)
    assert type(y) is torch.Tensor
    np.testing.assert_array_equal(y.numpy(), expected())
    assert gpu_conv.explain(x, w, groups=2, arch="sm_80").kernel
    y = gpu_conv.depthwise_separable_conv2d(x, w.repeat(2, 1, 1, 1)[:6, :1], torch.ones(2, 6, 1, 1))
    assert type(y) is torch.Tensor


@pytest.mark.peers
def test_tensors_that_are_refused(torch):
    x, w, b = tensors(torch)
    with pytest.raises(TypeError, match=r"w requires a gradient.*torch\.no_grad.*w\.detach\(\)"):
        gpu_conv.conv2d(x, torch.nn.Parameter(w), groups=2)
    with torch.no_grad():
        assert not gpu_conv.conv2d(x, torch.nn.Parameter(w), groups=2).requires_grad
    with pytest.raises(TypeError, match=r"x is a torch\.strided tensor on meta"):
        gpu_conv.conv2d(x.to("meta"), w.to("meta"), groups=2)
    with pytest.raises(TypeError, match=r"w is a torch\.sparse_coo tensor"):
        gpu_conv.conv2d(x, w.to_sparse(), groups=2)
    with pytest.raises(TypeError, match="x is a lazy conjugate"):
        gpu_conv.conv2d(x.to(torch.complex64).conj(), w.to(torch.complex64), groups=2)
    with pytest.raises(TypeError, match="x has dtype bool"):
        gpu_conv.conv2d(x.bool(), w.bool(), groups=2)
    with pytest.raises(TypeError, match="x is a torch array, w is a numpy array"):
        gpu_conv.conv2d(x, W, groups=2)
    with pytest.raises(ValueError, match="out must not share memory"):
        gpu_conv.conv2d(x[:, :4], w[:, :2], groups=2, padding=1, out=x[:, :4])


# ----------------------------------------------------------------------------------------------------------------- JAX


@pytest.fixture
def jax():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_platforms", "cpu")
    return jax


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_jax_in_and_out(jax, dtype, computed):
    options = OPTIONS | {"activation": None} if dtype == "int8" else OPTIONS
    x, w, b = (jax.numpy.asarray(a).astype(dtype) for a in (X, W, B))
    b = b.astype("int32") if dtype == "int8" else b
    y = gpu_conv.conv2d(x, w, b, **options)
    assert isinstance(y, jax.Array)
    assert y.dtype == ("int32" if dtype == "int8" else dtype)
    assert (computed("x"), computed("w")) == (x.unsafe_buffer_pointer(), w.unsafe_buffer_pointer())
    assert computed("y") == y.unsafe_buffer_pointer()
    want = gpu_conv.conv2d(X, W, B, **options)
    np.testing.assert_array_equal(np.asarray(y).astype(np.float32), want)


@pytest.mark.peers
def test_jax_arrays_that_are_refused(jax):
    x, w = jax.numpy.asarray(X), jax.numpy.asarray(W)
    with pytest.raises(TypeError, match="jax arrays cannot be written: leave out away"):
        gpu_conv.conv2d(x, w, groups=2, out=jax.numpy.zeros((2, 4, 7, 6)))
    with pytest.raises(TypeError, match=r"x is traced by jax\.jit.*pure_callback"):
        jax.jit(lambda x: gpu_conv.conv2d(x, w, groups=2))(x)
    with pytest.raises(TypeError, match="x is a jax array, w is a numpy array"):
        gpu_conv.conv2d(x, W, groups=2)
    if not jax.config.jax_enable_x64:
        with pytest.raises(TypeError, match="JAX makes float32 of float64: set jax_enable_x64"):
            gpu_conv.conv2d(x, w, groups=2, out_dtype="float64")
    result = jax.pure_callback(
        lambda x: np.asarray(gpu_conv.conv2d(x, w, groups=2)), jax.ShapeDtypeStruct((2, 4, 7, 6), "float32"), x
    )
    np.testing.assert_array_equal(result, gpu_conv.conv2d(X, W, groups=2))


@pytest.mark.peers
def test_tensors_and_jax_arrays_do_not_mix(torch, jax):
    with pytest.raises(TypeError, match="x is a torch array, w is a jax array"):
        gpu_conv.conv2d(torch.from_numpy(X), jax.numpy.asarray(W), groups=2)


@pytest.mark.peers
@pytest.mark.parametrize("importer", ["torch", "jax"])
def test_a_capsule_may_say_bfloat16(importer, torch, jax):
    """What CuPy arrays will be handed over as, tried with NumPy's: int16 capsules relabelled, without a copy."""
    values = aligned(integers(3, 5).astype(BFLOAT16))
    given = adapters._exportable(values)
    if importer == "torch":
        tensor = torch.from_dlpack(given)
        assert (tensor.dtype, tensor.data_ptr()) == (torch.bfloat16, values.ctypes.data)
        assert torch.equal(tensor.float(), torch.from_numpy(values.astype(np.float32)))
        back = adapters._dlpack_view(tensor, "x")
    else:
        array = jax.dlpack.from_dlpack(given)
        assert (array.dtype, array.unsafe_buffer_pointer()) == (BFLOAT16, values.ctypes.data)
        back = adapters._dlpack_view(array, "x")
    assert back.dtype == BFLOAT16
    assert back.ctypes.data == values.ctypes.data
    np.testing.assert_array_equal(back, values)
