"""Look-up by name with an answer that helps; every table of named things fails in the same words."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def look_up(table: Mapping[str, T], name: str, *, kind: str) -> T:
    """Return `table[name]`.

    Raises:
        ValueError: no such name; the one-line message gives the nearest name, if any, and all known ones.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {kind} {name!r}; {hint}known: {', '.join(sorted(table)) or 'none'}")


class Registry(Generic[T]):
    """Classes by their `name`, each made from keyword options, some from positional arguments before these.

    Args:
        kind: what they are called in messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.classes: dict[str, type[T]] = {}

    def register(self, cls: type[Any]) -> None:
        """Make `cls` available under `cls.name`.

        Raises:
            ValueError: the name is taken.
        """
        if cls.name in self.classes:
            raise ValueError(f"{self.kind} {cls.name!r} is registered already; give {cls.__name__} another name")
        self.classes[cls.name] = cls

    def create(self, name: str, *arguments: Any, **options: Any) -> T:
        """A new instance; what comes before the options is no option.

        Raises:
            ValueError: unknown name, unknown option, or an option out of range.
        """
        cls: Any = look_up(self.classes, name, kind=self.kind)
        known = list(inspect.signature(cls).parameters)[len(arguments) :]
        unknown = sorted(set(options) - set(known))
        if unknown:
            its = ", ".join(known) or "none"
            raise ValueError(f"{self.kind} {name!r} has no option {unknown[0]!r}; its options: {its}")
        try:
            types = get_type_hints(cls.__init__)
        except NameError:  # of somebody's class, whose annotations are for type checkers alone
            types = {}
        for option, value in options.items():
            if not _is_of(value, types.get(option, Any)):
                raise ValueError(f"{option} must be {_in_words(types[option])} got {value!r}")
        made: T = cls(*arguments, **options)
        return made

    def options(self, name: str) -> tuple[str, ...]:
        """The names of a class's keyword options.

        Raises:
            ValueError: unknown name.
        """
        parameters = inspect.signature(look_up(self.classes, name, kind=self.kind)).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def _is_of(value: object, wanted: Any) -> bool:
    """Whether a value is of an annotated type; what it may be else than a plain one is not looked at."""
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if wanted not in (bool, int, float, str):
        return True
    if isinstance(value, bool):  # which Python takes for an int
        return wanted is bool
    return isinstance(value, int | float if wanted is float else wanted)


def _in_words(wanted: Any) -> str:
    if get_origin(wanted) is Literal:
        return f"one of {', '.join(map(str, get_args(wanted)))};"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return f"{words[wanted]},"
