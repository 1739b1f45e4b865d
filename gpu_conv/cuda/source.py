"""Assemble one self-contained CUDA translation unit from the files in ``kernels/``."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries kernels/ inside the package; in a checkout it lies beside it.
KERNELS = next((p for p in (_PACKAGE / "kernels", _PACKAGE.parent / "kernels") if p.is_dir()), _PACKAGE / "kernels")

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)".*$', re.MULTILINE)
_PRAGMA_ONCE = re.compile(r"^[ \t]*#[ \t]*pragma[ \t]+once\b.*$", re.MULTILINE)


@cache
def load(name: str, root: Path = KERNELS) -> str:
    """Text of ``kernels/<name>`` with every quoted include expanded once, in place.

    ``#line`` directives make compiler messages and ``-lineinfo`` name the original file and line. The text is complete,
    so its hash identifies the kernel: there is no header whose change a cache could miss.

    Args:
        name: file relative to ``root``, with forward slashes, for example ``"direct.cu"``.
        root: folder that holds the kernels.

    Raises:
        FileNotFoundError: a file does not exist; the message names the line that includes it.
    """
    seen: set[str] = set()

    def expand(name: str, wanted_by: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        path = root / name
        if not path.is_file():
            raise FileNotFoundError(f"{wanted_by} wants {name!r}, which is not in {root}")
        text = _text(path)
        parts, end = [f'#line 1 "kernels/{name}"\n'], 0
        for match in _INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            parts += text[end : match.start()], expand(match[1], f"kernels/{name}:{line}")
            parts.append(f'\n#line {line + 1} "kernels/{name}"')
            end = match.end()
        return "".join([*parts, text[end:]])

    return expand(name, "the caller")


@cache
def _text(path: Path) -> str:
    """A file without ``#pragma once``, read once for all kernels that include it."""
    # Only the line ends matter to #line, so the directive may go but its line must stay.
    return _PRAGMA_ONCE.sub("", path.read_text(encoding="utf-8"))
