"""The commands and their options. Each imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from .. import __version__
from .output import err

# What the library raises for wrong input and missing parts. Anything else is a bug and keeps its traceback.
_FOR_THE_USER = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


class Device(str, Enum):
    """Where the convolutions run."""

    CPU = "cpu"
    EMULATOR = "emulator"
    CUDA = "cuda"


class _Group(typer.core.TyperGroup):
    """Turns an error that is meant for the user into one message and exit status 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except _FOR_THE_USER as error:
            if ctx.params.get("debug"):
                raise
            err.print(f"error: {_message(error)}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(2) from error


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


@app.command()
def classify(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Pictures. Without any, four that the demo extra brings.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="mobilenet_v2, efficientnet_lite0, or the path of an ONNX classifier.")
    ] = "mobilenet_v2",
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 5,
    profile: Annotated[bool, typer.Option("--profile", help="Print time and kernel of every layer.")] = False,
    device: Annotated[Device, typer.Option(help="Where the convolutions run.")] = Device.CPU,
) -> None:
    """Say what is in a picture, with a pretrained MobileNet or an ONNX classifier of your own."""
    from .classify import classify as command

    command(images or [], model, top, profile, device.value)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", "-i", metavar="NAME=FILE.npy", help="One for each input.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the outputs, one .npy file each.")] = None,
    device: Annotated[Device, typer.Option(help="Where the convolutions run.")] = Device.CPU,
) -> None:
    """Run an ONNX model on arrays from .npy files."""
    from .run import run as command

    command(model, inputs or [], output, device.value)


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
    activation: Annotated[str | None, typer.Option(help="relu6, silu, ...")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16, float64, int8.")] = "float32",
    device: Annotated[Device | None, typer.Option(help="Explain for this device.")] = None,
    arch: Annotated[str | None, typer.Option(help="Explain for a GPU that is not here: sm_90a.")] = None,
    kernel: Annotated[str | None, typer.Option(help="Force this row of the dispatch table.")] = None,
) -> None:
    """Show which kernel a convolution gets, why the others were refused, and what it costs."""
    from .explain import explain as command

    texts = {"strides": strides, "padding": padding, "dilations": dilations}
    options: dict[str, Any] = {"groups": groups, "input_layout": input_layout, "filter_layout": filter_layout}
    options |= {"activation": activation, "dtype": dtype, "arch": arch, "kernel": kernel}
    command(x, w, texts, options | {"device": device and device.value})


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
    activation: Annotated[str | None, typer.Option(help="relu6, silu, ...")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16, float64.")] = "float32",
    arch: Annotated[str, typer.Option(help="Whose PTX to run: sm_80, sm_90a, sm_120, ...")] = "sm_80",
    kernel: Annotated[str | None, typer.Option(help="Force this row of the dispatch table.")] = None,
    seed: Annotated[int | None, typer.Option(help="Run blocks and warps in a random order of this seed.")] = None,
) -> None:
    """Run a convolution's CUDA kernel on the CPU with every memory and race check on; exit status 1 if one fails."""
    from .emulate import emulate as command

    texts = {"strides": strides, "padding": padding, "dilations": dilations}
    options: dict[str, Any] = {"groups": groups, "input_layout": input_layout, "filter_layout": filter_layout}
    if not command(x, w, texts, options | {"activation": activation, "dtype": dtype}, arch, kernel, seed):
        raise typer.Exit(1)
