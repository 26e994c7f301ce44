"""Every exported function and class can be shown with its parameters, as notebooks and the documentation do."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
from nbdev.showdoc import show_doc

import arxiv_embeddings

MODULES = [module.name for module in pkgutil.walk_packages(arxiv_embeddings.__path__, "arxiv_embeddings.")]


def find_exported(module_name: str) -> Iterator[tuple[str, object]]:
    "Functions and classes that a module exports, and the public methods of these classes."
    module = importlib.import_module(module_name)
    for name in getattr(module, "__all__", []):
        exported = getattr(module, name)
        if getattr(exported, "__module__", None) != module_name:
            continue  # a constant, or imported from elsewhere
        yield name, exported
        if inspect.isclass(exported):
            for method_name, value in vars(exported).items():
                method = getattr(value, "__func__", value)  # of a class method
                if inspect.isfunction(method) and not method_name.startswith("_"):
                    yield f"{name}.{method_name}", method


@pytest.mark.parametrize("module_name", MODULES, ids=lambda name: name.removeprefix("arxiv_embeddings."))
def test_show_doc_works(module_name: str) -> None:
    failed = {}
    for name, exported in find_exported(module_name):
        try:
            show_doc(exported)
        except Exception as error:
            failed[name] = repr(error)
    assert failed == {}


def test_something_is_exported() -> None:
    assert sum(1 for name in MODULES for _ in find_exported(name)) > 300
