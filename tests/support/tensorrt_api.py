"""The true API of one TensorRT, as its Python bindings describe it, and what speaks against a use of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What pybind11 takes for a value of Python or of TensorRT besides its own type.
CONVERTED = {
    "int": {"SupportsInt", "SupportsFloat", "float"},
    "str": {"FallbackString"},
    "bytes": {"buffer", "Buffer"},
    "ndarray": {"buffer", "Buffer"},
    "tuple": {"Dims", "Permutation"},
    "PluginFieldCollection": {"PluginFieldCollection_"},
    "PyCapsule": {"capsule", "CapsuleType"},
}
SEQUENCES = {"list", "List", "Sequence", "Iterable"}


@dataclass(frozen=True)
class Use:
    """One use of TensorRT by our code.

    Args:
        kind: ``call`` of a method, ``get`` or ``set`` of a property, ``override`` of a method, ``member`` of an
            enumeration, or ``name`` of the module.
        owner: the class; empty for a name of the module.
        name: of the method, property, member or class.
        positional: types of the arguments, of the value that is set, or of what an override takes. A type is a word:
            a class of TensorRT's, ``int``, ``list[ITensor]``.
        keywords: names and types of the arguments that are passed by name.
        result: type of what came back; None where that is not known.
    """

    kind: str
    owner: str
    name: str
    positional: tuple[str, ...] = ()
    keywords: tuple[tuple[str, str], ...] = ()
    result: str | None = None

    def __str__(self) -> str:
        given = [*self.positional, *(f"{name}={word}" for name, word in self.keywords)]
        return f"{self.kind} {self.owner}.{self.name}({', '.join(given)}) -> {self.result}"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method."""

    name: str
    type: str
    required: bool


@dataclass(frozen=True)
class Signature:
    """One overload of a method, without ``self``."""

    parameters: tuple[Parameter, ...]
    returns: str

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read what pybind11 writes: ``(self: module.Class, name: module.Type = default) -> module.Type``."""
        inside, _, returns = text.removeprefix("(").rpartition(") -> ")
        return cls(tuple(map(_parameter, _split(inside)[1:])), _short(returns))


def _parameter(text: str) -> Parameter:
    name, _, rest = text.partition(": ")
    kind, default, _ = rest.partition(" = ")
    return Parameter(name, _short(kind), not default)


def _split(text: str) -> list[str]:
    """Parts between the commas that are in no bracket."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _short(kind: str) -> str:
    """A type without its modules and namespaces."""
    return re.sub(r"\w+(\.|::)(?=\w)", "", kind)


class Api:
    """What one TensorRT has. ``description`` is what ``tensorrt_description.py`` prints."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.title = f"{description['module']} {description['version']}"
        self._names = set(description["names"])
        self._classes: dict[str, dict[str, Any]] = description["classes"]

    def has(self, name: str) -> bool:
        """Whether any class has a method, property or member of this name."""
        return any(name in kind[table] for kind in self._classes.values() for table in ("methods", "properties"))

    def objection(self, use: Use) -> str | None:
        """What speaks against ``use`` here, in a line; None if nothing does."""
        if use.kind == "name":
            reason = None if use.name in self._names else "the module has no such name"
        elif use.owner not in self._classes:
            reason = "there is no such class"
        else:
            reason = getattr(self, f"_{use.kind}")(use)
        return reason and f"{self.title}: {use}: {reason}"

    def _lineage(self, owner: str) -> list[str]:
        return [owner, *(base for base in self._classes.get(owner, {}).get("bases", ()) if base in self._classes)]

    def _find(self, use: Use, table: str) -> Any:
        """The entry of the class, or of the nearest base that has one."""
        entries = (self._classes[owner][table].get(use.name) for owner in self._lineage(use.owner))
        return next((entry for entry in entries if entry is not None), None)

    def _call(self, use: Use) -> str | None:
        found = self._find(use, "methods")
        if found is None:
            return "there is no such method"
        signatures = [Signature.parse(text) for text in found]
        reasons = [self._unfit(signature, use) for signature in signatures]
        return None if None in reasons else "; ".join(filter(None, reasons))

    def _unfit(self, signature: Signature, use: Use) -> str | None:
        """Why a call does not fit one signature."""
        parameters = {parameter.name: parameter for parameter in signature.parameters}
        names = [*list(parameters)[: len(use.positional)], *(name for name, _ in use.keywords)]
        if len(use.positional) > len(parameters) or len(set(names)) < len(names) or not set(names) <= set(parameters):
            return f"it takes {', '.join(parameters) or 'nothing'}"
        if missing := [name for name, one in parameters.items() if one.required and name not in names]:
            return f"it also needs {', '.join(missing)}"
        given = [*use.positional, *(word for _, word in use.keywords)]
        for name, word in zip(names, given, strict=True):
            if not self._accepts(parameters[name].type, word):
                return f"{name} is of type {parameters[name].type}"
        return None if self._returned(signature.returns, use.result) else f"it gives {signature.returns}"

    def _get(self, use: Use) -> str | None:
        found = self._find(use, "properties")
        if found is None:
            return "there is no such property"
        kind = Signature.parse(found[0]).returns
        return None if self._returned(kind, use.result) else f"it is of type {kind}"

    def _set(self, use: Use) -> str | None:
        found = self._find(use, "properties")
        if found is None or len(found) < 2:
            return "there is no such property" if found is None else "it cannot be set"
        kind = Signature.parse(found[1]).parameters[0].type
        return None if self._accepts(kind, use.positional[0]) else f"it is of type {kind}"

    def _override(self, use: Use) -> str | None:
        """An example in the class's own text tells what an override takes, else the method's signature."""
        example, found = self._find(use, "examples"), self._find(use, "methods")
        if found is None:
            return "there is no such method"
        takes = _split(example)[1:] if example else [one.name for one in Signature.parse(found[0]).parameters]
        return None if len(takes) == len(use.positional) else f"it is given {', '.join(takes) or 'nothing'}"

    def _member(self, use: Use) -> str | None:
        return None if use.name in self._classes[use.owner]["members"] else "there is no such member"

    def _returned(self, kind: str, word: str | None) -> bool:
        """Whether a method that is said to return ``kind`` may return a ``word``; instead of an object, also None."""
        objects = ("None", "object", *CONVERTED["PyCapsule"], *self._classes)
        return word is None or (word == "NoneType" and kind in objects) or self._accepts(kind, word)

    def _accepts(self, kind: str, word: str) -> bool:
        """Whether a value of type ``word`` goes where ``kind`` is declared."""
        outer, _, item = word.partition("[")
        declared, _, declared_item = kind.partition("[")
        # pybind11 writes the name in C++ of a class that it comes to know later: IBuilder for Builder.
        names = ("object", outer, f"I{outer}", *CONVERTED.get(outer, ()), *self._lineage(outer))
        fits = declared in names or (outer in ("list", "tuple") and declared in SEQUENCES)
        if not fits or not item or not declared_item:
            return fits
        return self._accepts(declared_item[:-1], item[:-1])
