"""The names that users rely on: they resolve, they are documented, and their examples run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
import warnings

import pytest

import fullyconv

# The native kernel is a library, which looks like a module by its suffix.
NO_MODULES = {"fullyconv.__main__", "fullyconv.native._kernel"}
if importlib.util.find_spec("triton") is None:  # which torch brings along on Linux only
    NO_MODULES |= {"fullyconv.fused"}
MODULES = [m.name for m in pkgutil.walk_packages(fullyconv.__path__, "fullyconv.") if m.name not in NO_MODULES]


@pytest.mark.parametrize("name", fullyconv.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(fullyconv, name)
    if name != "__version__":
        assert inspect.getdoc(value)


def test_public_functions_say_what_they_raise_or_show_an_example() -> None:
    functions = [getattr(fullyconv, name) for name in fullyconv.__all__ if inspect.isfunction(getattr(fullyconv, name))]
    assert len(functions) >= 8
    for function in functions:
        text = inspect.getdoc(function) or ""
        assert "Raises:" in text or "Example:" in text, function.__name__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fullyconv.nonsense


def test_no_module_hides_a_public_function_of_its_name() -> None:
    # Importing a submodule binds it to its name in the package, over any function of that name.
    program = "\n".join([*(f"import {name}" for name in MODULES), "import fullyconv, types"])
    program += "\nwrong = [n for n in fullyconv.__all__ if isinstance(getattr(fullyconv, n), types.ModuleType)]"
    program += "\nassert wrong == ['presets'], wrong"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
