"""Every public name carries an example, every page of the documentation may, and every example is true."""

import ast
import doctest
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest

import gpu_conv
from gpu_conv import lax, webnn

PUBLIC = [
    *((gpu_conv, name) for name in gpu_conv.__all__ if name != "Explanation"),
    *((webnn, name) for name in webnn.__all__),
    *((lax, name) for name in lax.__all__ if name != "ConvDimensionNumbers"),
]
ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("docs/*.md"))
NOTEBOOKS = sorted(ROOT.glob("docs/*.ipynb"))


def check(example):
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed == 0


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[f"{module.__name__}.{name}" for module, name in PUBLIC])
def test_example(module, name):
    item = getattr(module, name)
    (example,) = doctest.DocTestFinder(recurse=False).find(item, name, inspect.getmodule(item))
    assert example.examples, f"{name} has no example"
    check(example)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_page(page):
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```py\w*\n(.*?)^```", text, re.M | re.S):
        # test_testing.py runs what begins with a comment: whole files, and what needs PyTorch or JAX
        assert block.startswith((">>>", "# ")), f"only code with >>> is run: {block}"
    without_fences = re.sub(r"^```.*$", "", text, flags=re.M)
    check(doctest.DocTestParser().get_doctest(without_fences, {}, page.name, str(page), 0))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_notebook(notebook, capsys):
    """Cell by cell as in Jupyter, and everything printed is what the file shows below the cell."""
    names = {"__name__": "__main__"}
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    for cell in cells:
        *statements, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(statements, []), cell["id"], "exec"), names)
        exec(compile(ast.Interactive([last]), cell["id"], "single"), names)  # the value of the last line is shown
        shown = [output["text"] if "text" in output else output["data"]["text/plain"] for output in cell["outputs"]]
        assert capsys.readouterr().out.rstrip() == "".join(map("".join, shown)).rstrip(), "".join(cell["source"])


OTHERS = [pytest.param(name, marks=pytest.mark.peers) for name in ("PyTorch", "JAX")]


@pytest.mark.parametrize("library", ["gpu_conv", "onnxruntime", *OTHERS])
def test_comparison(library):
    """One layer in each library: as many lines as the page says, and one result."""
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    code = re.search(rf"^```python\n# {library}\n(.*?)^```", page, re.M | re.S)[1]
    columns, lines = (re.search(rf"^\| {row}.*", page, re.M)[0].split(" | ") for row in (r"\| gpu_conv", "lines to"))
    assert sum(map(bool, code.splitlines())) == int(lines[columns.index(library)])
    names = {"np": np, "x": np.ones((8, 32, 112, 112), np.float32), "w": np.ones((32, 1, 3, 3), np.float32)}
    exec(compile(code, "docs/comparison.md", "exec"), names)
    expected = np.full((8, 32, 56, 56), 6, np.float32)
    expected[..., 0, 0] = 4  # the corner of the padding; elsewhere six ones or nine, and relu6
    np.testing.assert_array_equal(names["y"], expected)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_links(page):
    """Relative links lead to files of the repository; after a ``#`` behind a test file stands one of its tests."""
    for target in re.findall(r"\]\(([^)#:]*)(?:#(\w+))?\)", page.read_text(encoding="utf-8")):
        path, test = target
        file = page.parent / path
        assert not path or file.exists(), path
        assert not (test and file.suffix == ".py") or f"def {test}(" in file.read_text(), target
