"""An inverted residual as arrays, as convolutions and as one launch; shared by the tests of kernel and operators."""

from dataclasses import dataclass

import numpy as np

from gpu_conv import arguments, reference
from gpu_conv.emulator import Emulator
from gpu_conv.families import inverted_residual as family
from gpu_conv.families.inverted_residual_model import Chain, Tile, tiles
from gpu_conv.testing.tolerance import SLOPE, tolerance
from tests.kernels.checking import TARGETS, guarded, numbers

SMALL = Tile(7, 7, 32, 2)
LONG = Tile(7, 7, 64, 4)
BLOCKS = {  # of MobileNetV2: map, channels in, expanded and out, stride
    1: (112, 32, 32, 16, 1),
    2: (112, 16, 96, 24, 2),
    3: (56, 24, 144, 24, 1),
    5: (28, 32, 192, 32, 1),
    7: (28, 32, 192, 64, 2),
    8: (14, 64, 384, 64, 1),
    12: (14, 96, 576, 96, 1),
    14: (14, 96, 576, 160, 2),
    15: (7, 160, 960, 160, 1),
    17: (7, 160, 960, 320, 1),
}


@dataclass
class Block:
    """Arrays of a chain, its convolutions one by one, and the arguments of the operator."""

    x: np.ndarray
    filters: list
    options: dict

    def steps(self, out=None):
        """The calls of the convolutions that the operator stands for; results are stand-ins or ``out``."""
        calls, x, given = [], self.x, self.options
        rows = zip(("expand_", "depthwise_", ""), self.filters, strict=True)
        for name, w in [row for row in rows if row[1] is not None]:
            options = {"bias": given[f"{name}bias"], "activation": given[f"{name}activation"], "input_layout": "nhwc"}
            if name == "depthwise_":
                options |= {k: given[k] for k in ("strides", "padding")} | {"groups": len(w)}
            if not name:
                options |= {"residual": self.x if given["residual"] else None, "out": out}
            calls.append(arguments.prepare(x, w, **options))
            x = calls[-1].result
        return calls

    @property
    def chain(self):
        problems = [call.problem for call in self.steps()]
        return Chain(problems[0] if len(problems) == 3 else None, *problems[-2:])

    def truth(self, rounded):
        """The result in float64, intermediate results rounded or not, and how far a right one may lie from it."""
        value, error = None, 0.0
        for call in self.steps():
            problem, operands = call.problem, dict(call.operands)
            if value is not None:
                operands["x"] = value.reshape(problem.x.shape)
            value = reference.convolve(problem, operands)
            own = tolerance(problem, operands, value)
            if np.any(error):
                spread = {"x": error.reshape(problem.x.shape), "w": np.abs(operands["w"].astype(float))}
                inner = reference.convolve(problem, {**operands, **spread}, magnitude=True)
                zero = {**operands, "x": np.zeros(problem.x.shape)}
                slope = SLOPE.get(problem.activation.name, 1.0) if problem.activation else 1.0
                own = own + slope * (inner - reference.convolve(problem, zero, magnitude=True))
            error = own
            if rounded:
                value = value.astype(problem.y.dtype).astype(float)
        shape = call.result.shape
        return [np.moveaxis(v[:, 0], 1, -1).reshape(shape) for v in (value, error)]


def block(size, channels, *, dtype="float16", expand=True, residual=False, batch=1, exact=True, seed=0, **options):
    """A block of ``channels`` (in, expanded, out). ``exact``: integers so small that float16 holds all."""
    rng = np.random.default_rng(seed)
    c, e, o = channels
    shapes = ((e, c, 1, 1), (e, 1, 3, 3), (o, e, 1, 1))
    made = [numbers(shape, dtype, rng, exact) for shape in shapes]
    if exact:
        made[0] *= (rng.random(shapes[0]) < 4 / c).astype(dtype)
    else:
        made = [(w / np.sqrt(w[0].size)).astype(dtype) for w in made]
    biases = [numbers(n, "float32", rng, exact) for n in (e, e, o)]
    given = dict(zip(("expand_bias", "depthwise_bias", "bias"), biases, strict=True))
    given |= {"expand_activation": "relu6", "depthwise_activation": "relu6", "activation": None}
    given |= {"strides": 1, "padding": 1, "residual": residual} | options
    if not expand:
        made[0] = None
    return Block(numbers((batch, *size, c), dtype, rng, exact), made, given)


def run(made, *, tile=None, arch="sm_80", exact=True, seed=None):
    """In the emulator with every check on, compared with the truth; returns launch and report."""
    chain, target = made.chain, TARGETS[arch]
    assert family.refuses(chain, target) is None
    tile = tile or tiles(chain, target)[0]
    out, clear, check_guards = guarded(made.steps()[-1].result.shape, made.x.dtype)
    clear()
    filters = dict(zip(("expand", "depthwise", "project"), made.filters, strict=True))
    filters = {k: w if w is None else w[:, 0] if k == "depthwise" else w[:, :, 0, 0] for k, w in filters.items()}
    filters |= {k: made.options[k] for k in ("expand_bias", "depthwise_bias")}
    launch = family.plan(chain, target, tile)
    operands = {"x": made.x, "w": family.weights(chain, tile, filters, np), "bias": made.options["bias"], "y": out}
    report = Emulator(arch, seed=seed).run(launch, operands)
    check_guards()
    truth, error = made.truth(rounded=exact)
    if exact:
        np.testing.assert_array_equal(out.astype(float), truth)
    else:
        assert np.array_equal(np.isnan(out.astype(float)), np.isnan(truth))
        worst = np.nanmax(np.abs(out.astype(float) - truth) / error)
        assert worst <= 1, worst
        assert worst > 1e-4, "so far from the bound that the bound says nothing"
    return launch, report, out


def shape_of(number, batch=256):
    """A block of MobileNetV2 as a chain; its memory is never touched."""
    size, c, e, o, stride = BLOCKS[number]
    filters = [np.empty(s, "float16") for s in ((e, c, 1, 1), (e, 1, 3, 3), (o, e, 1, 1))]
    filters[0] = filters[0] if e != c else None
    options = {"expand_bias": None, "depthwise_bias": None, "bias": None, "strides": stride, "padding": 1}
    options |= {"expand_activation": "relu6", "depthwise_activation": "relu6", "activation": None}
    x = np.empty((batch, size, size, c), "float16")
    return Block(x, filters, options | {"residual": stride == 1 and c == o}).chain
