import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_conv.cuda import source


def write(root: Path, files: dict[str, list[str]]) -> None:
    for name, lines in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("\n".join(lines) + "\n")


def origins(text: str) -> list[tuple[str, int, str]]:
    """(file, line, content) of every line, following #line as a compiler does."""
    rows, file, number = [], "", 0
    for line in text.splitlines():
        if match := re.fullmatch(r'#line (\d+) "(.+)"', line):
            number, file = int(match[1]) - 1, match[2]
        else:
            number += 1
            rows.append((file, number, line))
    return rows


FILES = {
    "a.cu": [
        "// a 1",
        '#include "b.cuh"',
        "// a 3",
        '  #  include "deep/c.cuh"  // why',
        "",
        "// a 6",
        '#include "b.cuh"',
        "// a 8",
    ],
    "b.cuh": ["#pragma once", "// b 2", '#include "deep/c.cuh"', "// b 4"],
    "deep/c.cuh": ["  #pragma once", '#include "b.cuh"', "#include <cuda_fp16.h>", "// c 4"],
}


def test_every_line_keeps_its_file_and_number_and_appears_once(tmp_path):
    write(tmp_path, FILES)
    rows = [row for row in origins(source.load("a.cu", tmp_path)) if "//" in row[2]]
    assert rows == [
        ("kernels/a.cu", 1, "// a 1"),
        ("kernels/b.cuh", 2, "// b 2"),
        ("kernels/deep/c.cuh", 4, "// c 4"),
        ("kernels/b.cuh", 4, "// b 4"),
        ("kernels/a.cu", 3, "// a 3"),
        ("kernels/a.cu", 6, "// a 6"),
        ("kernels/a.cu", 8, "// a 8"),
    ]


def test_only_quoted_includes_and_pragma_once_go(tmp_path):
    write(tmp_path, FILES)
    text = source.load("a.cu", tmp_path)
    assert '#include "' not in text
    assert "pragma once" not in text
    assert "#include <cuda_fp16.h>" in text


def test_a_missing_file_names_the_line_that_wants_it(tmp_path):
    write(tmp_path, {"a.cu": ["// 1", '#include "none.cuh"']})
    with pytest.raises(FileNotFoundError, match=r"kernels/a\.cu:2 wants 'none\.cuh'"):
        source.load("a.cu", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'nothing\.cu', which is not in"):
        source.load("nothing.cu", tmp_path)


def test_the_repository_s_kernels_load():
    for path in source.KERNELS.glob("*.cu"):
        text = source.load(path.name)
        assert '#include "' not in text
        assert text.startswith(f'#line 1 "kernels/{path.name}"\n')


@pytest.mark.parametrize("kernels", ["gpu_conv/kernels", "kernels"])
def test_kernels_are_found_in_a_wheel_and_in_a_checkout(tmp_path, kernels):
    module = tmp_path / "gpu_conv/cuda/source.py"
    module.parent.mkdir(parents=True)
    shutil.copy(source.__file__, module)
    write(tmp_path / kernels, {"a.cu": ["// here"]})
    spec = importlib.util.spec_from_file_location("copy_of_source", module)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert tmp_path / kernels == copy.KERNELS
    assert "// here" in copy.load("a.cu")


def test_importing_the_package_loads_no_cuda_library():
    code = (
        "import sys; from gpu_conv.cuda import cache, compiler, device, source; "
        "print([m for m in ('cupy', 'cuda.bindings.nvrtc') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
