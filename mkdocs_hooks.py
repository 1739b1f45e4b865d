"""What mkdocs does to a page: notebooks, sections of the README, links to the repository, roles in docstrings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

_README = Path(__file__).with_name("README.md")


def on_files(files: Any, config: Any) -> Any:
    """Each notebook becomes a page beside the file; the tests have seen that its outputs are what its cells print."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        cells = json.loads(notebook.content_string)["cells"]
        page = notebook.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, page, content="\n\n".join(map(_cell, cells))))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """``<!-- README: Install -->`` becomes that section; a link to a file of the repository becomes its text."""
    if not page.file.generated_by:  # links to a notebook lead to its page, but on that page to the file itself
        markdown = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", markdown)
    with_sections = re.sub(r"^<!-- README: (.+) -->$", _section, markdown, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./|benchmarks/)[^)]*\)", r"\1", with_sections)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name functions as ``:func:`conv```; the role's name is for Sphinx."""
    return re.sub(r":(?:func|class|data|mod|attr):(?=<code>)", "", html)


def _cell(cell: dict[str, Any]) -> str:
    """Markdown of a cell: its text, or its code and what it printed."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    shown = "".join("".join(out["text"] if "text" in out else out["data"]["text/plain"]) for out in cell["outputs"])
    return f"```python\n{source}\n```" + (f"\n\n```text\n{shown.rstrip()}\n```" if shown else "")


def _section(comment: re.Match[str]) -> str:
    text = _README.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(comment[1])}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise PluginError(f"README.md has no section {comment[1]!r}")
    return found[0].replace("](docs/", "](")
