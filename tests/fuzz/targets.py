"""Fuzz targets for what reads files of others: ``target(bytes)`` returns, or raises what is documented; no more.

pytest mutates the seeds a little (``test_inputs.py``). ``python -m tests.fuzz.targets onnx`` hands the same targets to
atheris (``pip install atheris``), which is guided by coverage; the options that follow are libFuzzer's.
"""

import io
import sys
import tempfile
from pathlib import Path

import numpy as np


def onnx(data):
    """The ONNX loader, from a file, so that external data is looked for."""
    from gpu_conv.onnx import Limits, ModelError, load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(data)
        try:
            load(path, limits=Limits(file_bytes=1 << 20, tensor_bytes=1 << 24, nodes=1000))
        except ModelError:
            return


def weights(data):
    """The reader of PyTorch's files."""
    from gpu_conv.models.weights import WeightsError, read

    try:
        read(data, max_bytes=1 << 24)
    except WeightsError:
        return


def picture(data):
    """The way of a picture from a file to a classifier."""
    from gpu_conv.models.pictures import Preprocess

    try:
        found = Preprocess()(io.BytesIO(data))
    except ValueError:
        return
    assert found.shape == (1, 3, 224, 224) and np.isfinite(found).all()


def seeds():
    """Good files for each target."""
    from PIL import Image

    from tests.graph_models import normal
    from tests.test_onnx_errors import HOSTILE, conv, external
    from tests.test_weights import legacy, state, tensor, zipped

    with tempfile.TemporaryDirectory() as folder:
        outside = external(Path(folder), "../w.bin").read_bytes()
    small = conv({"w": normal(1, 4, 1, 1)}, pads=[1, 1, 1, 1]).SerializeToString()
    hostile = [model if isinstance(model, bytes) else model.SerializeToString() for model, _ in HOSTILE.values()]
    pictures = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        stream = io.BytesIO()
        Image.fromarray((np.arange(300).reshape(10, 10, 3) % 256).astype(np.uint8)).save(stream, kind)
        pictures.append(stream.getvalue())
    body = state(a=tensor(), b=tensor((3, 2), (1, 3)))
    return {
        onnx: [small, outside, *(data for data in hostile if 0 < len(data) < 2000)],
        weights: [legacy(body), zipped(body)],
        picture: pictures,
    }


if __name__ == "__main__":
    import atheris

    chosen = {f.__name__: f for f in (onnx, weights, picture)}[sys.argv.pop(1)]
    with atheris.instrument_imports(include=["gpu_conv", "PIL", "zipfile", "pickletools"]):
        import gpu_conv.models.pictures
        import gpu_conv.models.weights
        import gpu_conv.onnx  # noqa: F401
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-corpus-"))
    for number, seed in enumerate(seeds()[chosen]):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], chosen)
    atheris.Fuzz()
