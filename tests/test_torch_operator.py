"""``gpu_conv.torch``: operators that PyTorch can trace."""

import importlib.util

import pytest

import gpu_conv

pytestmark = pytest.mark.peers

if importlib.util.find_spec("torch"):  # without it the mark skips all tests
    import torch

    import gpu_conv.torch as operators

    FUNCTIONAL = torch.nn.functional


@pytest.fixture(autouse=True)
def forget():
    yield
    torch._dynamo.reset()


def integers(*shape):
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def block(x, w, b):
    y = operators.conv(x, w, b, groups=2, padding=1, strides=(2, 1), activation=("clip", 0, 6))
    return operators.conv_transpose(y, torch.ones(4, 1, 2, 2), strides=2, groups=4) + 1


def expected(x, w, b):
    y = FUNCTIONAL.conv2d(x, w, b, (2, 1), 1, 1, 2).clamp(0, 6)
    return FUNCTIONAL.conv_transpose2d(y, torch.ones(4, 1, 2, 2), stride=2, groups=4) + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch about its own parts
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_without_a_break(backend, dynamic):
    w, b = integers(4, 3, 3, 3), integers(4)
    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=dynamic)
    for shape in ((2, 6, 9, 8), (1, 6, 12, 7)):
        x = integers(*shape)
        assert torch.equal(compiled(x, w, b), expected(x, w, b))


def test_a_size_may_be_an_option():
    w = integers(4, 1, 3, 3)
    compiled = torch.compile(
        lambda x: operators.conv(x, w.repeat(x.shape[1] // 4, 1, 1, 1), groups=x.shape[1], padding=(x.shape[2] - 7, 1)),
        fullgraph=True,
        backend="eager",
        dynamic=True,
    )
    for shape in ((2, 4, 9, 9), (1, 8, 8, 7)):
        x, pad = integers(*shape), (shape[2] - 7, 1)
        want = FUNCTIONAL.conv2d(x, w.repeat(shape[1] // 4, 1, 1, 1), padding=pad, groups=shape[1])
        assert torch.equal(compiled(x), want)


OPERANDS = {
    "plain": ("conv", (2, 6, 9, 8), (4, 6, 3, 3), {}),
    "words": ("conv", (2, 6, 9, 8), (4, 3, 3, 3), {"groups": 2, "padding": "same_upper", "strides": 2}),
    "nhwc": (
        "conv",
        (2, 9, 8, 6),
        (3, 3, 1, 6),
        {"groups": 6, "input_layout": "nhwc", "filter_layout": "hwio", "output_layout": "nchw"},
    ),
    "group axis": ("conv", (2, 6, 9), (2, 2, 3, 3), {"groups": 2, "filter_layout": "ogiw", "dilations": 2}),
    "batch groups": ("conv", (4, 3, 9), (6, 3, 3), {"batch_groups": 2, "input_dilations": 2}),
    "clip": ("conv", (2, 6, 9), (2, 6, 3), {"activation": ("clip", -1.5, float("inf")), "flip_filter": True}),
    "half": ("conv", (2, 6, 9), (2, 6, 3), {"out_dtype": "float64", "padding": ((2, 0),)}),
    "transposed": ("conv_transpose", (2, 6, 5, 4), (6, 2, 3, 3), {"groups": 2, "strides": 3, "output_padding": 1}),
    "sized": ("conv_transpose", (2, 6, 5), (6, 2, 3), {"strides": 2, "output_sizes": (12,)}),
    "transposed, group axis": (
        "conv_transpose",
        (2, 6, 5),
        (2, 3, 4, 3),
        {"groups": 2, "filter_layout": "giow", "padding": 1},
    ),
}


@pytest.mark.parametrize("name", OPERANDS)
def test_the_fake_result_is_shaped_like_the_real_one(name):
    operator, x_shape, w_shape, options = OPERANDS[name]
    x, w = integers(*x_shape), integers(*w_shape)
    real = getattr(operators, operator)(x, w, **options)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = getattr(operators, operator)(mode.from_tensor(x), mode.from_tensor(w), **options)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
    assert torch.equal(real, getattr(gpu_conv, operator)(x, w, **options))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("gradient", [False, True])
def test_pytorchs_own_checks_of_an_operator(gradient):
    x, w, b = integers(1, 4, 5, 5).requires_grad_(gradient), integers(4, 2, 3, 3), integers(4)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.gpu_conv.conv, (x, w, b, torch.ones(1, 4, 3, 3), "{'groups': 2}"), test_utils=tests)
    torch.library.opcheck(torch.ops.gpu_conv.conv_transpose, (x, w, None, None, "{'strides': 2}"), test_utils=tests)


def test_a_gradient_is_refused_when_it_is_asked_for():
    layer = torch.nn.Conv2d(4, 4, 3)
    x = integers(1, 4, 5, 5)
    y = operators.conv(x, layer.weight, layer.bias)  # a model in eval mode has parameters that want gradients
    assert torch.allclose(y, layer(x), atol=1e-5)
    with pytest.raises(RuntimeError, match=r"computes no gradients: .*torch\.no_grad\(\)"):
        y.sum().backward()


def test_bfloat16_and_residual():
    x, w, r = integers(1, 4, 5, 5).bfloat16(), integers(4, 1, 3, 3).bfloat16(), integers(1, 4, 5, 5).bfloat16()
    y = operators.conv(x, w, residual=r, groups=4, padding=1)
    want = FUNCTIONAL.conv2d(x.float(), w.float(), padding=1, groups=4) + r.float()
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, want.bfloat16())
    assert operators.conv(x, w, groups=4, out_dtype=torch.float32).dtype == torch.float32


def test_options_that_an_operator_cannot_hold():
    x, w = integers(1, 4, 5, 5), integers(4, 4, 3, 3)
    with pytest.raises(TypeError, match=r"take no option out; gpu_conv\.conv may"):
        operators.conv(x, w, out=x)
    with pytest.raises(TypeError, match="strides must be numbers in an operator"):
        operators.conv(x, w, strides=torch.ones(2))
    with pytest.raises(ValueError, match="groups=3 needs"):
        operators.conv(x, w, groups=3)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_plain_functions_break_the_graph_but_stay_right():
    x, w = integers(1, 4, 5, 5), integers(4, 4, 3, 3)
    layer = gpu_conv.Conv(w, padding=1)
    compiled = torch.compile(lambda x: layer(gpu_conv.conv2d(x, w, padding=1).relu()) + 1, backend="eager")
    want = FUNCTIONAL.conv2d(FUNCTIONAL.conv2d(x, w, padding=1).relu(), w, padding=1) + 1
    assert torch.equal(compiled(x), want)
