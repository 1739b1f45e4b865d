"""Every public name carries an example, and every example is true."""

import doctest
import inspect

import pytest

import gpu_conv

PUBLIC = [name for name in gpu_conv.__all__ if name != "Explanation"]


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    item = getattr(gpu_conv, name)
    module = inspect.getmodule(item)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(item, name, module)
    assert example.examples, f"{name} has no example"
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
    assert result.failed == 0
