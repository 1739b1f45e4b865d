"""Every public name carries an example, every page of the documentation may, and every example is true."""

import doctest
import inspect
import re
from pathlib import Path

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


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links(page):
    """Relative links lead to files of the repository; after a ``#`` behind a test file stands one of its tests."""
    for target in re.findall(r"\]\(([^)#:]*)(?:#(\w+))?\)", page.read_text()):
        path, test = target
        file = page.parent / path
        assert not path or file.exists(), path
        assert not (test and file.suffix == ".py") or f"def {test}(" in file.read_text(), target
