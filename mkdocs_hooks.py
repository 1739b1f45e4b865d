"""What mkdocs does to a page: sections of the README, links to files outside of the site, roles in docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

_README = Path(__file__).with_name("README.md")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``<!-- README: Install -->`` becomes that section; a link to a file of the repository becomes its text."""
    with_sections = re.sub(r"^<!-- README: (.+) -->$", _section, markdown, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./|benchmarks/)[^)]*\)", r"\1", with_sections)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name functions as ``:func:`conv```; the role's name is for Sphinx."""
    return re.sub(r":(?:func|class|data|mod|attr):(?=<code>)", "", html)


def _section(comment: re.Match[str]) -> str:
    text = _README.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(comment[1])}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise PluginError(f"README.md has no section {comment[1]!r}")
    return found[0].replace("](docs/", "](")
