"""The pretrained models: download, cache, graphs. The weights are downloaded once per cache (``GPU_CONV_CACHE``)."""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from gpu_conv import models
from gpu_conv.cachedir import cache_dir
from gpu_conv.models import packages, pictures

# Top-1 of torchvision's own MobileNetV2 on these pictures, and of EfficientNet-Lite0 with its own preprocessing.
EXPECTED = {
    "mobilenet_v2": {"coffee": 0.992, "chelsea": 0.714, "china": 0.697, "motorcycle_left": 0.592},
    "efficientnet_lite0": {"coffee": 0.951, "chelsea": 0.386, "china": 0.315, "motorcycle_left": 0.540},
}
LABELS = {"coffee": "espresso", "chelsea": "Egyptian cat", "china": "palace", "motorcycle_left": "moped"}
DIFFERENT = {("efficientnet_lite0", "chelsea"): "tiger cat"}


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores.astype(np.float64) - scores.max())
    return exponentials / exponentials.sum()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(file: packages.PackagedFile) -> bytes:
        raise packages.FetchError(f"no network for {file.package}")

    monkeypatch.setattr(packages, "fetch", fetch)


@pytest.mark.parametrize("name", models.MODELS)
def test_the_graph_gives_the_known_answers(name: str) -> None:
    session = onnxruntime.InferenceSession(str(models.path(name)), providers=["CPUExecutionProvider"])
    labels = models.labels()
    for picture in pictures.demonstration():
        (scores,) = session.run(None, {"input": models.MODELS[name].preprocess(picture)})
        probabilities = softmax(scores[0])
        best = int(probabilities.argmax())
        label = DIFFERENT.get((name, picture.stem), LABELS[picture.stem])
        assert labels[best].split(",")[0] == label
        assert probabilities[best] == pytest.approx(EXPECTED[name][picture.stem], abs=0.002)


@pytest.mark.peers
def test_mobilenet_agrees_with_a_torch_module_that_keeps_batch_normalisation() -> None:
    import torch
    from torch.nn import functional as F

    from gpu_conv.models import weights

    state = weights.read(packages.fetch(models.MODELS["mobilenet_v2"].weights))
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    convolutions = [name.removesuffix(".weight") for name in tensors if tensors[name].ndim == 4]

    def block(x: torch.Tensor, conv: str, stride: int) -> torch.Tensor:
        w = tensors[f"{conv}.weight"]
        head, _, last = conv.rpartition(".")
        norm = f"{head}.{int(last) + 1}"
        x = F.conv2d(x, w, stride=stride, padding=w.shape[2] // 2, groups=w.shape[0] if w.shape[1] == 1 else 1)
        parts = (tensors[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-5)

    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32))
    (scores,) = onnxruntime.InferenceSession(str(models.path("mobilenet_v2"))).run(None, {"input": x.numpy()})
    halved = (2, 4, 7, 14)  # features whose depthwise layer has a stride of 2
    y = F.relu6(block(x, "features.0.0", 2))
    for index in range(1, 18):
        names = [name for name in convolutions if name.startswith(f"features.{index}.")]
        shortcut = y
        for position, name in enumerate(names):
            depthwise = tensors[f"{name}.weight"].shape[1] == 1
            y = block(y, name, 2 if depthwise and index in halved else 1)
            y = y if position == len(names) - 1 else F.relu6(y)
        y = y + shortcut if y.shape == shortcut.shape else y
    y = F.relu6(block(y, "features.18.0", 1)).mean((2, 3))
    want = F.linear(y, tensors["classifier.1.weight"], tensors["classifier.1.bias"]).numpy()
    np.testing.assert_allclose(scores, want, atol=2e-5 * np.abs(want).max())


# ------------------------------------------------------------------------------------------------------------- cache


def test_a_cached_model_needs_no_network(no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _made()
    monkeypatch.setenv("GPU_CONV_CACHE", str(tmp_path))
    with pytest.raises(packages.FetchError, match="no network for fdet"):
        models.path("mobilenet_v2")
    copy = tmp_path / "models" / source.name
    copy.parent.mkdir()
    shutil.copy(source, copy)
    assert models.path("mobilenet_v2") == copy


@pytest.mark.parametrize("damage", [b"", b"\x00", None])
def test_a_damaged_model_is_made_again(
    damage: bytes | None, no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _made().read_bytes()
    copy = tmp_path / "models" / _made().name
    copy.parent.mkdir()
    copy.write_bytes(damage if damage is not None else content[:5000] + b"\x55" + content[5001:])
    monkeypatch.setenv("GPU_CONV_CACHE", str(tmp_path))
    with pytest.raises(packages.FetchError):
        models.path("mobilenet_v2")


def _made() -> Path:
    """The model in the real cache; downloads are switched on for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "fetch", FETCH)
        return models.path("mobilenet_v2")


FETCH = packages.fetch


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match=r"no pretrained model 'resnet'.*mobilenet_v2"):
        models.path("resnet")


@pytest.mark.parametrize(
    ("variables", "want"),
    [
        ({"GPU_CONV_CACHE": "/a"}, "/a/kernels"),
        ({"GPU_CONV_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/kernels"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/gpu_conv/kernels"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/gpu_conv/kernels"),
        ({"GPU_CONV_CACHE": "~/c", "HOME": "/home/me"}, "/home/me/c/kernels"),
        ({"HOME": "/home/me"}, "/home/me/.cache/gpu_conv/kernels"),
    ],
)
def test_cache_directory(variables: dict[str, str], want: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GPU_CONV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir("kernels") == Path(want)


# ---------------------------------------------------------------------------------------------------------- download


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installer that prints its arguments and runs the script it is given."""
    script = tmp_path / "installer.py"
    monkeypatch.setattr(packages, "_installer", lambda: [sys.executable, str(script)])
    return script


FILE = packages.PackagedFile("parcel", "1.0", "0" * 64, 10, "parcel/data.bin", "1" * 64)


def test_another_content_than_the_pinned_is_refused(installer: Path) -> None:
    installer.write_text(
        "import pathlib, sys\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--target') + 1], 'parcel')\n"
        "target.mkdir(parents=True); (target / 'data.bin').write_bytes(b'forged')\n"
    )
    with pytest.raises(packages.FetchError, match=r"parcel/data.bin of parcel 1.0 .* has SHA-256 .*, expected 1111"):
        packages.fetch(FILE)
    assert packages.fetch(replace(FILE, sha256=hashlib.sha256(b"forged").hexdigest())) == b"forged"


def test_the_installers_own_words_reach_the_user(installer: Path) -> None:
    installer.write_text("import sys; sys.exit('no matching distribution')")
    with pytest.raises(packages.FetchError, match=r"cannot download parcel 1.0 (?s:.*)no matching distribution"):
        packages.fetch(FILE)


def test_the_installer_is_told_to_check_the_hash_and_to_run_no_code(installer: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    installer.write_text(
        "import pathlib, sys\n"
        f"requirements = pathlib.Path(sys.argv[sys.argv.index('-r') + 1]).read_text()\n"
        f"pathlib.Path({str(seen)!r}).write_text(' '.join(sys.argv) + requirements)\n"
        "sys.exit(1)\n"
    )
    with pytest.raises(packages.FetchError):
        packages.fetch(FILE)
    for wanted in ("--no-deps", "--require-hashes", "--only-binary :all:", f"parcel==1.0 --hash=sha256:{'0' * 64}"):
        assert wanted in seen.read_text()


def test_without_pip_and_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    monkeypatch.delenv("UV", raising=False)
    with pytest.raises(packages.FetchError, match="needs pip"):
        packages.fetch(FILE)


# ---------------------------------------------------------------------------------------------------------- pictures


def test_preprocessing_is_that_of_torchvision(tmp_path: Path) -> None:
    """Hand values: a picture of one colour stays of that colour; a ramp keeps its centre."""
    file = tmp_path / "plain.png"
    Image.new("RGB", (400, 300), (255, 0, 128)).save(file)
    x = models.Preprocess()(file)
    assert x.shape == (1, 3, 224, 224)
    assert x.dtype == np.float32
    want = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(x[0].mean((1, 2)), want, rtol=1e-6)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, 0).repeat(3, 2)
    Image.fromarray(ramp).save(file)
    x = models.Preprocess(mean=(0, 0, 0), std=(1, 1, 1))(file)
    np.testing.assert_allclose(x[0, 0, 0] * 255, np.arange(16, 240), atol=1e-4)


def test_a_very_long_picture_stays_small(tmp_path: Path) -> None:
    file = tmp_path / "long.png"
    Image.new("L", (20_000, 2), 255).save(file)
    assert models.Preprocess()(file).shape == (1, 3, 224, 224)


def test_orientation_in_exif_is_respected(tmp_path: Path) -> None:
    file = tmp_path / "turned.jpg"
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:, 128:] = 255  # right half is white; orientation 3 turns it by 180 degrees
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(file, exif=exif, quality=95)
    x = models.Preprocess(mean=(0, 0, 0), std=(1, 1, 1))(file)
    assert x[0, 0, :, :100].min() > 0.9
    assert x[0, 0, :, 124:].max() < 0.1


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_what_is_no_picture(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="not a picture"):
        models.Preprocess()(file)


def test_a_picture_of_absurd_size_is_not_decoded(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (14_000, 14_000)).save(file)
    with pytest.raises(ValueError, match="not a picture that can be read"):
        models.Preprocess()(file)
