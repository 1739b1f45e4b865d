"""The commands and their options. Each imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from .. import __version__
from .output import err

# What the library raises for wrong input and missing parts. Anything else is a bug, and says so.
_FOR_THE_USER = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)
_WRONG_CALL, _BUG = 2, 70  # exit statuses; 1 is a check that found something


class Device(str, Enum):
    """Where the convolutions run."""

    CPU = "cpu"
    EMULATOR = "emulator"
    CUDA = "cuda"


class _Group(typer.core.TyperGroup):
    """Turns an error into one message and an exit status; ``--traceback`` keeps it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if ctx.params.get("traceback") or hasattr(error, "exit_code"):  # Typer's own: it prints the usage
                raise
            bug = not isinstance(error, _FOR_THE_USER)
            advice = "; this is a bug: gpu-conv --traceback ... shows where, please report it" if bug else ""
            err.print(f"error: {_message(error)}{advice}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(_BUG if bug else _WRONG_CALL) from error


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, _FOR_THE_USER):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _completed(*words: str) -> Callable[[str], list[str]]:
    """Shell completion from a list of words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _kernels(incomplete: str) -> list[str]:
    from ..dispatch import TABLE

    return [row.name for row in TABLE if row.name.startswith(incomplete)]


def _archs(incomplete: str) -> list[str]:
    from ..cuda.targets import KNOWN_TARGETS

    return [arch for arch in KNOWN_TARGETS if arch.startswith(incomplete)]


def _checks(incomplete: str) -> list[str]:
    from .doctor import CHECKS

    return [name for name in CHECKS if name.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
_DTYPE_NAMES = ("float32", "float16", "bfloat16", "float64", "int8", "uint8")
_DTYPES, _DTYPE_HELP = _completed(*_DTYPE_NAMES), f"{', '.join(_DTYPE_NAMES)}."
_ACTIVATIONS = _completed(
    *("relu", "relu6", "sigmoid", "tanh", "silu", "hard_sigmoid", "hard_swish", "gelu", "elu", "softplus")
)
_NETS = ("mobilenet_v2", "efficientnet_lite0")


app = typer.Typer(
    cls=_Group,
    help="Neural-network convolution for CuPy and NumPy arrays.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"gpu-conv {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", envvar="GPU_CONV_TRACEBACK", help="Show the traceback of an error.")
    ] = False,
) -> None:
    pass


@app.command()
def classify(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Pictures. Without any, four that the demo extra brings.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="mobilenet_v2, efficientnet_lite0, or the path of an ONNX classifier.",
            autocompletion=_completed(*_NETS),
        ),
    ] = "mobilenet_v2",
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 5,
    profile: Annotated[bool, typer.Option("--profile", help="Print time and kernel of every layer.")] = False,
    device: Annotated[Device, typer.Option(help="Where the convolutions run.")] = Device.CPU,
    json: Json = False,
) -> None:
    """Say what is in a picture, with a pretrained MobileNet or an ONNX classifier of your own."""
    from .classify import classify as command

    command(images or [], model, top, profile, device.value, json)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", "-i", metavar="NAME=FILE.npy", help="One for each input.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the outputs, one .npy file each.")] = None,
    device: Annotated[Device, typer.Option(help="Where the convolutions run.")] = Device.CPU,
    json: Json = False,
) -> None:
    """Run an ONNX model on arrays from .npy files."""
    from .run import run as command

    command(model, inputs or [], output, device.value, json)


@app.command()
def explain(
    x: Annotated[str, typer.Option(help="Shape of the input, as 1,32,112,112.")],
    w: Annotated[str, typer.Option(help="Shape of the filter, as 32,1,3,3.")],
    strides: Annotated[str, typer.Option(help="One number, or one for each axis: 2 or 2,1.")] = "1",
    padding: Annotated[
        str, typer.Option(help="1, or 1,2 by axis, or lo:hi pairs 0:1,0:1, or valid, same_upper, same_lower.")
    ] = "0",
    dilations: Annotated[str, typer.Option(help="One number, or one for each axis.")] = "1",
    groups: Annotated[int, typer.Option(help="Groups of channels.")] = 1,
    input_layout: Annotated[str | None, typer.Option(help="nchw, nhwc, ncw, ndhwc, ...")] = None,
    filter_layout: Annotated[str | None, typer.Option(help="oihw, hwio, ohwi, ihwo, ...")] = None,
    activation: Annotated[str | None, typer.Option(help="relu6, silu, ...", autocompletion=_ACTIVATIONS)] = None,
    dtype: Annotated[str, typer.Option(help=_DTYPE_HELP, autocompletion=_DTYPES)] = "float32",
    device: Annotated[Device | None, typer.Option(help="Explain for this device.")] = None,
    arch: Annotated[
        str | None, typer.Option(help="Explain for a GPU that is not here: sm_90a.", autocompletion=_archs)
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="Force this row of the dispatch table.", autocompletion=_kernels)
    ] = None,
    json: Json = False,
) -> None:
    """Show which kernel a convolution gets, why the others were refused, and what it costs."""
    from .explain import explain as command

    texts = {"strides": strides, "padding": padding, "dilations": dilations}
    options: dict[str, Any] = {"groups": groups, "input_layout": input_layout, "filter_layout": filter_layout}
    options |= {"activation": activation, "dtype": dtype, "arch": arch, "kernel": kernel}
    command(x, w, texts, options | {"device": device and device.value}, json)


@app.command()
def emulate(
    x: Annotated[str, typer.Option(help="Shape of the input, as 1,32,28,28.")],
    w: Annotated[str, typer.Option(help="Shape of the filter, as 32,1,3,3.")],
    strides: Annotated[str, typer.Option(help="One number, or one for each axis.")] = "1",
    padding: Annotated[str, typer.Option(help="As for explain.")] = "0",
    dilations: Annotated[str, typer.Option(help="One number, or one for each axis.")] = "1",
    groups: Annotated[int, typer.Option(help="Groups of channels.")] = 1,
    input_layout: Annotated[str | None, typer.Option(help="nchw, nhwc, ncw, ndhwc, ...")] = None,
    filter_layout: Annotated[str | None, typer.Option(help="oihw, hwio, ohwi, ihwo, ...")] = None,
    activation: Annotated[str | None, typer.Option(help="relu6, silu, ...", autocompletion=_ACTIVATIONS)] = None,
    dtype: Annotated[str, typer.Option(help=_DTYPE_HELP, autocompletion=_DTYPES)] = "float32",
    arch: Annotated[
        str, typer.Option(help="Whose PTX to run: sm_80, sm_90a, sm_120, ...", autocompletion=_archs)
    ] = "sm_80",
    kernel: Annotated[
        str | None, typer.Option(help="Force this row of the dispatch table.", autocompletion=_kernels)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Run blocks and warps in a random order of this seed.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a convolution's CUDA kernel on the CPU with every memory and race check on; exit status 1 if one fails."""
    from .emulate import emulate as command

    texts = {"strides": strides, "padding": padding, "dilations": dilations}
    options: dict[str, Any] = {"groups": groups, "input_layout": input_layout, "filter_layout": filter_layout}
    if not command(x, w, texts, options | {"activation": activation, "dtype": dtype}, arch, kernel, seed, json):
        raise typer.Exit(1)


@app.command()
def warmup(
    model: Annotated[
        str,
        typer.Argument(help="An ONNX file, mobilenet_v2 or efficientnet_lite0.", autocompletion=_completed(*_NETS)),
    ] = "mobilenet_v2",
    arch: Annotated[
        list[str] | None, typer.Option(help="Compile for this GPU: sm_90a. May be repeated.", autocompletion=_archs)
    ] = None,
    dim: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SIZE", help="Size of an open axis of the inputs, as n=32.")
    ] = None,
    json: Json = False,
) -> None:
    """Compile a model's kernels into the cache, without a GPU; without --arch, for the GPU that is here."""
    from .warmup import warmup as command

    command(model, arch or [], dim or [], json)


@app.command()
def bench(
    device: Annotated[Device, typer.Option(help="cpu: the NumPy engine. cuda: the kernels.")] = Device.CPU,
    only: Annotated[str, typer.Option(help="Layers whose kind or name contains this: depthwise, @56, ...")] = "",
    threads: Annotated[list[int] | None, typer.Option(min=1, help="On the CPU; may be repeated. Default: 1.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="On the CPU: rounds in which the contestants take turns.")] = 15,
    dtype: Annotated[
        list[str] | None, typer.Option(help="On the GPU; may be repeated. Default: float16.", autocompletion=_DTYPES)
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="On the GPU. Default: the smallest that moves 16 MB.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Beside these libraries; may be repeated. Default: all that are installed.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the speed-ups into this SVG, PNG or PDF file.")] = None,
    json: Json = False,
) -> None:
    """Time layers of MobileNet and ResNet beside the other libraries that are installed."""
    from .bench import bench as command
    from .bench import peers

    options: dict[str, Any] = {"only": only, "peers": peers(device.value, peer)}
    if device is Device.CUDA:
        options |= {"dtypes": dtype or ["float16"], "batch": batch}
    else:
        options |= {"threads": threads or [1], "rounds": rounds}
    command(device.value, options, json, plot)


@app.command()
def tune(
    model: Annotated[
        str | None,
        typer.Argument(help="An ONNX file, mobilenet_v2 or efficientnet_lite0.", autocompletion=_completed(*_NETS)),
    ] = None,
    x: Annotated[str | None, typer.Option(help="Instead of a model: shape of a layer's input, 32,144,56,56.")] = None,
    w: Annotated[str | None, typer.Option(help="Shape of its filter, as 144,1,3,3.")] = None,
    strides: Annotated[str, typer.Option(help="One number, or one for each axis.")] = "1",
    padding: Annotated[str, typer.Option(help="As for explain.")] = "0",
    dilations: Annotated[str, typer.Option(help="One number, or one for each axis.")] = "1",
    groups: Annotated[int, typer.Option(help="Groups of channels.")] = 1,
    input_layout: Annotated[str | None, typer.Option(help="nchw, nhwc, ncw, ndhwc, ...")] = None,
    filter_layout: Annotated[str | None, typer.Option(help="oihw, hwio, ohwi, ihwo, ...")] = None,
    activation: Annotated[str | None, typer.Option(help="relu6, silu, ...", autocompletion=_ACTIVATIONS)] = None,
    dtype: Annotated[str, typer.Option(help=_DTYPE_HELP, autocompletion=_DTYPES)] = "float32",
    dim: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SIZE", help="Size of an open axis of the model, as n=32.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The file; without it, one in the cache, by device.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Tiles to try of each kernel family.")] = 8,
    json: Json = False,
) -> None:
    """Time every kernel and tile that could run a model or a layer on this GPU, and write down the fastest."""
    from .tune import tune as command

    texts = {"strides": strides, "padding": padding, "dilations": dilations}
    options: dict[str, Any] = {"groups": groups, "input_layout": input_layout, "filter_layout": filter_layout}
    options |= {"activation": activation, "dtype": dtype}
    command(model, x, w, texts, options, dim or [], output, most, json)


@app.command()
def doctor(
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit with status 1 if this line of the table says no; may be repeated. Default: cpu.",
            autocompletion=_checks,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Try everything that could be missing here, and say how to repair it."""
    from .doctor import doctor as command

    if not command(require or ["cpu"], json):
        raise typer.Exit(1)
