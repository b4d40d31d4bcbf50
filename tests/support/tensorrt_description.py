"""Prints what a module of TensorRT's Python bindings has, as JSON: classes, signatures, properties and enumerations.

It is run as a program, once for each TensorRT, since two of them do not fit into one process. pybind11 writes the
signatures into docstrings; nothing else of a docstring is read but examples of methods to override.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from typing import Any

EXAMPLE = re.compile(r"^\s*def (\w+)\((self.*?)\).*:$", re.MULTILINE)


def describe(module: Any) -> dict[str, Any]:
    """Name, version, names, classes and functions of ``module``."""
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    functions = {
        name: signatures(value.__doc__ or "", name)
        for name, value in vars(module).items()
        if callable(value) and not isinstance(value, type)
    }
    return {
        "module": module.__name__,
        "version": module.__version__,
        "names": sorted(vars(module)),
        "classes": {name: describe_class(value) for name, value in classes.items()},
        "functions": functions,
    }


def describe_class(kind: type) -> dict[str, Any]:
    """Bases by name, methods, properties and members of one class, without those it inherits."""
    own = vars(kind)
    methods = {name: value for name, value in own.items() if type(value).__name__ == "instancemethod"}
    properties = {name: value for name, value in own.items() if isinstance(value, property)}
    text = own.get("__doc__")
    return {
        "bases": [base.__name__ for base in kind.__mro__[1:]],
        "methods": {name: signatures(value.__doc__ or "", name) for name, value in methods.items()},
        "properties": {
            name: [accessor(value.fget), accessor(value.fset)] if value.fset else [accessor(value.fget)]
            for name, value in properties.items()
        },
        "examples": dict(EXAMPLE.findall(text)) if isinstance(text, str) else {},
        "members": list(getattr(kind, "__members__", {})),
        "constants": sorted(name for name in own if name not in methods and name not in properties),
    }


def signatures(text: str, name: str) -> list[str]:
    """The signatures in a docstring, one for each overload."""
    found = re.findall(rf"^(?:\d+\. )?{re.escape(name)}(\(.*\) -> .+)$", text, re.MULTILINE)
    return [line for line in found if not line.startswith("(*args")]


def accessor(function: Any) -> str:
    """The signature of a property's getter or setter."""
    return ((function.__doc__ or "").strip().splitlines() or [""])[0]


if __name__ == "__main__":
    json.dump(describe(import_module(sys.argv[1])), sys.stdout)
