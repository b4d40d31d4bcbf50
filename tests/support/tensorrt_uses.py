"""Notes every use that our code makes of TensorRT: of a real module, and of doubles of what does not run here.

A fixture of ``conftest.py`` looks at what was noted after every test: nothing may speak against it in the real
bindings that are installed. So a double cannot offer what TensorRT has not, and no call of ours can go astray.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.support import tensorrt_wheels
from tests.support.tensorrt_api import Use

# Uses since the test began, and the TensorRTs in which each must be right.
NOTED: dict[Use, frozenset[str]] = {}


def note(use: Use, fits: frozenset[str]) -> None:
    """Remember a use. One that is made for several TensorRTs must be right in all of them."""
    NOTED[use] = NOTED.get(use, frozenset()) | fits


def objections(uses: Mapping[Use, frozenset[str]]) -> list[str]:
    """What speaks against the uses in the TensorRTs whose bindings are installed."""
    all_of_them = (
        tensorrt_wheels.api(name).objection(use)
        for use, names in uses.items()
        for name in sorted(names)
        if tensorrt_wheels.installed(name)
    )
    return [text for text in all_of_them if text is not None]


def type_word(value: Any) -> str:
    """The type of a value as :class:`Use` writes it."""
    if isinstance(value, Double):
        return str(value.kind)
    if isinstance(value, (list, tuple)):
        return type(value).__name__ + (f"[{type_word(value[0])}]" if value else "")
    return _own_class(type(value)).__name__


def _own_class(kind: type) -> type:
    """TensorRT's class that ``kind`` is derived from; else ``kind`` itself."""
    return next((base for base in kind.__mro__ if base.__module__.startswith("tensorrt")), kind)


def _call(owner: str, name: str, positional: tuple[Any, ...], keywords: dict[str, Any], result: Any) -> Use:
    words = tuple((key, type_word(value)) for key, value in keywords.items())
    return Use("call", owner, name, tuple(map(type_word, positional)), words, type_word(result))


class Double:
    """Stands in for an object of TensorRT's, and notes its uses.

    Args:
        kind: the class that it stands in for.
        methods: what it answers, as functions by name.
        values: its properties; what is set is put there.
        fits: the TensorRTs in which its uses must be right.
    """

    kind: str
    values: dict[str, Any]

    def __init__(
        self,
        kind: str,
        methods: Mapping[str, Callable[..., Any]] | None = None,
        values: Mapping[str, Any] | None = None,
        fits: tuple[str, ...] = tensorrt_wheels.ALL,
    ) -> None:
        vars(self).update(kind=kind, values=dict(values or {}), _methods=dict(methods or {}), _fits=frozenset(fits))

    def __getattr__(self, name: str) -> Any:
        if name in self.values:
            note(Use("get", self.kind, name, result=type_word(self.values[name])), self._fits)
            return self.values[name]
        if name not in self._methods:
            raise AttributeError(f"the double of {self.kind} has no {name}")
        return _noted_call(self.kind, name, self._methods[name], self._fits)

    def __setattr__(self, name: str, value: Any) -> None:
        note(Use("set", self.kind, name, (type_word(value),)), self._fits)
        self.values[name] = value


def _noted_call(owner: str, name: str, function: Callable[..., Any], fits: frozenset[str]) -> Callable[..., Any]:
    def noted(*positional: Any, **keywords: Any) -> Any:
        result = function(*positional, **keywords)
        # A constructor gives its object to the caller and None to pybind11.
        note(_call(owner, name, positional, keywords, None if name == "__init__" else result), fits)
        return result

    return noted


class RecordedModule:
    """A real module of TensorRT's, whose names and members of enumerations are noted where they are used.

    Args:
        module: the module.
        fits: the TensorRTs in which the uses must be right.
        constructors: what takes the place of classes by name; it makes doubles.
    """

    def __init__(self, module: Any, fits: tuple[str, ...], **constructors: Callable[..., Any]) -> None:
        self._module = module
        self._fits = frozenset(fits)
        self._constructors = constructors

    def __getattr__(self, name: str) -> Any:
        note(Use("name", "", name), self._fits)
        if name in self._constructors:
            return _noted_call(name, "__init__", self._constructors[name], self._fits)
        value = getattr(self._module, name)
        return _Members(value, self._fits) if isinstance(value, type) and hasattr(value, "__members__") else value


class _Members:
    """An enumeration whose members are noted where they are named."""

    def __init__(self, kind: Any, fits: frozenset[str]) -> None:
        self._kind = kind
        self._fits = fits

    def __getattr__(self, name: str) -> Any:
        note(Use("member", self._kind.__name__, name), self._fits)
        return getattr(self._kind, name)


def record_classes(module: Any, patch: pytest.MonkeyPatch, fits: tuple[str, ...]) -> None:
    """Note, while ``patch`` lasts, what is done with every object that the real ``module`` makes."""
    for kind in {value for value in vars(module).values() if isinstance(value, type)}:
        for name, value in list(vars(kind).items()) if not hasattr(kind, "__members__") else ():
            if type(value) is property:  # not one of the class itself
                patch.setattr(kind, name, _noted_property(name, value, frozenset(fits)))
            elif type(value).__name__ == "instancemethod" and (name == "__init__" or not name.startswith("_")):
                patch.setattr(kind, name, _noted_method(name, value, frozenset(fits)))


def add_method(
    kind: type, name: str, function: Callable[..., Any], patch: pytest.MonkeyPatch, fits: tuple[str, ...]
) -> None:
    """Give a class of the real module a method of another TensorRT's, or one that answers in place of its own."""
    patch.setattr(kind, name, _noted_method(name, function, frozenset(fits)), raising=False)


def _noted_method(name: str, original: Callable[..., Any], fits: frozenset[str]) -> Callable[..., Any]:
    def noted(this: Any, *positional: Any, **keywords: Any) -> Any:
        result = original(this, *positional, **keywords)
        note(_call(type_word(this), name, positional, keywords, result), fits)
        if name == "__init__":
            _note_overrides(type(this), fits)
        return result

    return noted


def _noted_property(name: str, original: property, fits: frozenset[str]) -> property:
    def read(this: Any) -> Any:
        value = original.__get__(this)
        note(Use("get", type_word(this), name, result=type_word(value)), fits)
        return value

    def write(this: Any, value: Any) -> None:
        note(Use("set", type_word(this), name, (type_word(value),)), fits)
        original.__set__(this, value)

    return property(read, write if original.fset else None)


def _note_overrides(kind: type, fits: frozenset[str]) -> None:
    """What a class of ours takes over from the one of TensorRT's that it is derived from."""
    base = _own_class(kind)
    for name, value in vars(kind).items() if kind is not base else ():
        if inspect.isfunction(value) and not name.startswith("_"):
            takes = tuple(inspect.signature(value).parameters)[1:]
            note(Use("override", base.__name__, name, takes), fits)
