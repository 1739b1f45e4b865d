"""The .pth reader: files made by hand here, PyTorch's own where it is installed, and hostile ones."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpu_conv.models import weights
from gpu_conv.models.weights import WeightsError

# --------------------------------------------------------------------------------------- a small assembler of pickles

ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 6, view: bytes = b"") -> bytes:
    return (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + view + b"tQ"
    )


def tensor(size: Iterable[int] = (2, 3), stride: Iterable[int] = (3, 1), offset: int = 0, held: bytes = b"") -> bytes:
    arguments = (held or storage()) + number(offset) + numbers(size) + numbers(stride) + b"\x89" + ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def state(**entries: bytes) -> bytes:
    return ORDERED_DICT + b"(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def legacy(body: bytes, data: bytes = np.arange(6, dtype="<f4").tobytes(), count: int = 6, key: str = "0") -> bytes:
    """A file of before PyTorch 1.6 with one storage."""
    head = [number(0x1950A86A20F9469CFC6C), number(1001), b"}(" + text("little_endian") + b"\x88u"]
    parts = [*head, body, b"](" + text(key) + b"e"]
    return b"".join(b"\x80\x02" + part + b"." for part in parts) + struct.pack("<q", count) + data


def zipped(body: bytes, members: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of today with one storage."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02" + body + b".")
        for name, content in (members or {"net/data/0": np.arange(6, dtype="<f4").tobytes()}).items():
            archive.writestr(name, content)
    return stream.getvalue()


FORMATS = pytest.mark.parametrize("pack", [legacy, zipped])

# ------------------------------------------------------------------------------------------------------ what it reads


@FORMATS
def test_reads_windows_on_one_storage_in_the_order_of_the_file(pack, tmp_path: Path) -> None:
    windows = {
        "whole": tensor(),
        "transposed": tensor((3, 2), (1, 3)),
        "row": tensor((3,), (1,), offset=3),
        "expanded": tensor((2, 2), (0, 5)),
        "scalar": tensor((), (), offset=4),
        "empty": tensor((0, 3), (3, 1)),
    }
    file = tmp_path / "net.pth"
    file.write_bytes(pack(state(**windows)))
    found = weights.read(file)
    want = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert list(found) == list(windows)
    assert all(array.dtype == np.float32 and array.flags.owndata for array in found.values())
    np.testing.assert_array_equal(found["whole"], want)
    np.testing.assert_array_equal(found["transposed"], want.T)
    np.testing.assert_array_equal(found["row"], want[1])
    np.testing.assert_array_equal(found["expanded"], [[0, 5], [0, 5]])
    assert found["scalar"].shape == () and found["scalar"] == 4
    assert found["empty"].shape == (0, 3)


def test_reads_parameters_and_ignores_the_attributes_of_the_dictionary() -> None:
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88" + ORDERED_DICT + b"tR"
    body = state(p=parameter) + b"}(" + text("_metadata") + ORDERED_DICT + b"ub"
    assert weights.read(zipped(body))["p"].shape == (2, 3)


def test_booleans_are_zero_or_one_whatever_the_bytes() -> None:
    body = state(b=tensor((3,), (1,), held=storage("BoolStorage", count=3)))
    found = weights.read(zipped(body, {"net/data/0": b"\x00\x01\x07"}))["b"]
    assert found.dtype == np.bool_
    assert found.view(np.uint8).tolist() == [0, 1, 1]


# -------------------------------------------------------------------------------------------------- what it refuses


class _Attack:
    """Pickles into a call of os.system, as malicious model files do."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


ATTACKS = {
    "reduce": lambda target: b"cposix\nsystem\n(" + text(f"touch {target}") + b"tR",
    "builtins": lambda target: b"cbuiltins\neval\n(" + text(f"open({str(target)!r}, 'w')") + b"tR",
    "through an allowed module": lambda target: b"ctorch._utils\nos.system\n(" + text(f"touch {target}") + b"tR",
    "allowed name of another module": lambda target: b"cos\nOrderedDict\n(" + text(f"touch {target}") + b"tR",
    "inst": lambda target: b"(" + text(f"touch {target}") + b"iposix\nsystem\n",
    "obj": lambda target: b"(cposix\nsystem\n" + text(f"touch {target}") + b"o",
    "newobj": lambda target: b"csubprocess\nPopen\n(" + text("touch") + text(str(target)) + b"t\x81",
    "stack_global": lambda target: text("posix") + text("system") + b"\x93(" + text(f"touch {target}") + b"tR",
    "build on a name": lambda target: b"ccollections\nOrderedDict\n}(" + text("__call__") + b"cposix\nsystem\nub",
    "extension": lambda target: b"\x82\x01(" + text(f"touch {target}") + b"tR",
    "protocol 5": lambda target: pickle.dumps(_Attack(f"touch {target}"), protocol=5)[2:-1],
    "protocol 0": lambda target: pickle.dumps(_Attack(f"touch {target}"), protocol=0)[:-1],
}


@FORMATS
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["value", "key", "whole", "argument"])
def test_no_code_in_a_file_runs(pack, attack: str, place: str, tmp_path: Path) -> None:
    target = tmp_path / "run"
    code = ATTACKS[attack](target)
    body = {
        "value": state(a=tensor(), b=code),
        "key": ORDERED_DICT + b"(" + code + tensor() + b"u",
        "whole": code,
        "argument": state(a=tensor(held=code)),
    }[place]
    with pytest.raises(WeightsError):
        weights.read(pack(body))
    assert not target.exists()


HOSTILE = {
    "not a dictionary": (b"]", "dictionary"),
    "value is no tensor": (state(a=number(3)), "not a tensor"),
    "key is no string": (b"}(" + number(1) + tensor() + b"u", "key"),
    "key is a deep tuple": (b"}(" + b")" + b"\x85" * 200_000 + tensor() + b"u", "key"),
    "stride reaches beyond": (state(a=tensor((2, 3), (4, 1))), "reaches element 6"),
    "size reaches beyond": (state(a=tensor((7,), (1,))), "reaches element 6"),
    "offset reaches beyond": (state(a=tensor((1,), (1,), offset=6)), "reaches element 6"),
    "empty tensor beyond": (state(a=tensor((0,), (1,), offset=7)), "reaches"),
    "negative offset": (state(a=tensor((1,), (1,), offset=-1)), "list of counts"),
    "negative stride": (state(a=tensor((2,), (-1,), offset=5)), "list of counts"),
    "negative size": (state(a=tensor((-2,), (1,))), "list of counts"),
    "size overflows": (state(a=tensor((2**62, 2**62), (0, 0))), "limit"),
    "empty but overflowing": (state(a=tensor((0, 2**62, 2**62), (0, 0, 0))), "limit"),
    "terabytes by stride 0": (state(a=tensor((2**40,), (0,))), "limit"),
    "many expanded tensors": (state(**{f"t{i}": tensor((2**24,), (0,)) for i in range(64)}), "limit"),
    "rank 33": (state(a=tensor((1,) * 33, (1,) * 33)), "list of counts"),
    "rank differs": (state(a=tensor((2, 3), (1,))), "list of counts"),
    "size is a flag": (state(a=tensor().replace(numbers((2, 3)), b"(\x88\x88t")), "list of counts"),
    "size is a dictionary": (state(a=tensor().replace(numbers((2, 3)), b"}")), "without"),
    "negative count": (state(a=tensor((0,), (1,), held=storage(count=-1))), "announces -1"),
    "unknown type": (state(a=tensor(held=storage("ComplexFloatStorage"))), "ComplexFloatStorage"),
    "type is a class": (state(a=tensor(held=storage("Tensor"))), "torch.Tensor"),
    "view of a storage": (state(a=tensor(held=storage(view=text("v")))), "views"),
    "reference to a module": (state(a=b"(" + text("module") + text("m") + b"tQ"), "no tensor storage"),
    "stack underflow": (b"ttt", "more values"),
    "memo of nothing": (b"h\x07", "damaged"),
    "opcode of no pickle": (b"\xff", "damaged"),
    "string longer than the file": (b"X" + struct.pack("<I", 2**31), "damaged"),
    "endless opcodes": (b"N" * (1 << 22) + b"0", "more than"),
    "list in itself": (b"]q\x00(h\x00h\x00e", "dictionary"),
}


@FORMATS
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(pack, case: str) -> None:
    body, message = HOSTILE[case]
    with pytest.raises(WeightsError, match=message):
        weights.read(pack(body))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "pickle"),
        (b"GIF89a", "pickle"),
        (pickle.dumps({"a": 1}, protocol=2), "magic"),
        (legacy(state(a=tensor()), count=5), "5 elements, 6"),
        (legacy(state(a=tensor()), count=-1), "-1 elements, 6"),
        (legacy(state(a=tensor()), data=bytes(23)), "ends inside"),
        (legacy(state(a=tensor()), data=bytes(25)), "1 bytes follow"),
        (legacy(state(a=tensor()), key="1"), "does not fit"),
        (legacy(state(a=tensor(), b=tensor(held=storage(count=7)))), "two sizes"),
        (zipped(state(a=tensor()), {"net/data/0": bytes(23)}), "23 bytes, 24"),
        (zipped(state(a=tensor()), {"net/data/1": bytes(24)}), "no member"),
        (zipped(state(a=tensor()), {"other/data.pkl": b""}), "found 2"),
        (zipped(state(a=tensor()), {"net/byteorder": b"big", "net/data/0": bytes(24)}), "little-endian"),
        (zipped(state(a=tensor()), compression=zipfile.ZIP_DEFLATED), "compressed"),
        (zipped(state(a=tensor()))[:-10], "zip"),
        (zipped(state(a=tensor(held=storage(key="../../etc/passwd")))), "no member"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        weights.read(data)


@FORMATS
def test_every_truncation_is_refused(pack) -> None:
    data = pack(state(a=tensor(), b=tensor((3,), (1,))))
    for end in range(len(data)):
        with pytest.raises(WeightsError):
            weights.read(data[:end])


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "big.pth"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: a terabyte that takes no space
    with pytest.raises(WeightsError, match="limit"):
        weights.read(file)


@FORMATS
@example(changes=[(161, 92)])  # a backslash before a letter, of which pickletools warns: an error in these tests
@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_files_are_read_or_refused(pack, changes: list[tuple[int, int]]) -> None:
    data = bytearray(pack(state(a=tensor(), b=tensor((3, 2), (1, 3)))))
    for position, value in changes:
        data[position % len(data)] = value
    with contextlib.suppress(WeightsError):
        weights.read(bytes(data))


# ------------------------------------------------------------------------------------------------------ PyTorch's own


@pytest.mark.peers
@pytest.mark.parametrize("modern", [True, False])
def test_reads_what_torch_saves(modern: bool, tmp_path: Path) -> None:
    import torch

    rng = torch.Generator().manual_seed(0)
    whole = torch.randn(4, 3, 5, generator=rng)
    kinds = (torch.float16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    saved = {str(kind): (whole * 9).to(kind) for kind in kinds}
    saved |= {"whole": whole, "same storage": whole, "permuted": whole.permute(2, 0, 1), "part": whole[1:3, :, ::2]}
    saved |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "bfloat16": whole.bfloat16()}
    saved |= {"parameter": torch.nn.Parameter(whole), "expanded": torch.ones(1).expand(3, 2)}
    file = tmp_path / "net.pth"
    torch.save(saved, file, _use_new_zipfile_serialization=modern)
    found = weights.read(file)
    assert list(found) == list(saved)
    for name, value in saved.items():
        want = value.detach().float().numpy() if name == "bfloat16" else value.detach().numpy()
        assert found[name].shape == want.shape
        assert name == "bfloat16" or found[name].dtype == want.dtype
        np.testing.assert_array_equal(found[name].astype(want.dtype), want, err_msg=name)


@pytest.mark.peers
def test_reads_the_state_of_a_module() -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    found = weights.read(stream.getvalue())
    assert list(found) == list(module.state_dict())
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(found[name], value.numpy())
