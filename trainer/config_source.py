"""Where configuration values come from: YAML files with `extends`, `key=value` overrides, the origin of each value."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.config_yaml import DEEPEST, LARGEST_FILE, UNPRINTABLE, read_yaml
from trainer.errors import ConfigError
from trainer.secrets import redact

MOST_FILES = 32
"""Files of one configuration; each `extends` counts, also of a file that was read before."""
MOST_ERRORS = 20
"""Shown at once."""
OTHERWISE = "Input should be "
"""How pydantic begins where a value is not of the type that it wants."""
SIMPLE = {"bool", "int", "float", "str"}
"""How pydantic names the alternatives of a field that takes any of these."""


@dataclass
class ConfigSource:
    """Merged values and, for each dotted key, the place that set it (`file:line` or `command line`)."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def merge(self, values: dict[str, Any], origins: dict[str, str]) -> None:
        """Let later values win, group by group."""
        _merge(self.values, values)
        self.origins |= origins

    def origin(self, key: str) -> str:
        """The place of a key, or of the nearest group above it."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "default")


def _merge(base: dict[str, Any], update: dict[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def read_source(path: Path | None, overrides: list[str]) -> ConfigSource:
    """Read `path`, if there is one, with everything it extends, then apply the overrides.

    Raises:
        ConfigError: a file is missing, is no mapping of plain values, extends itself, or an override has no `=`.
    """
    source = ConfigSource()
    chain = _Chain()
    if path is not None:
        _read_chain(path, [], chain)
    for values, origins in chain.links:
        source.merge(values, origins)
    for override in overrides:
        values, key = _parse_override(override)
        source.merge(values, {key: "command line"})
    return source


@dataclass
class _Chain:
    """Files read so far, in the order of merging."""

    links: list[tuple[dict[str, Any], dict[str, str]]] = field(default_factory=list)
    files: int = 0


def _read_chain(path: Path, seen: list[Path], chain: _Chain) -> None:
    if not path.is_file():
        by = f" (extended by {seen[-1]})" if seen else ""
        raise ConfigError(f"there is no configuration file {path}{by}: check the path")
    if path.resolve() in [p.resolve() for p in seen]:
        raise ConfigError(f"{path} extends itself through {' -> '.join(map(str, seen))}: remove one `extends`")
    chain.files += 1
    if chain.files > MOST_FILES:
        raise ConfigError(f"{seen[0]} extends more than {MOST_FILES} files: remove some `extends`")
    values, origins = _read_file(path)
    for parent in _parents(values.pop("extends", []), origins):
        _read_chain(path.parent / parent, [*seen, path], chain)
    chain.links.append((values, origins))


def _parents(extends: object, origins: dict[str, str]) -> list[str]:
    parents = [extends] if isinstance(extends, str) else extends
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{origins['extends']}: extends must be the path of a file, or a list of them")
    for parent in parents:
        # So that a file from somebody else cannot have others looked into, such as passwords.
        if not parent.endswith((".yaml", ".yml")):
            raise ConfigError(f"{origins['extends']}: extends must name files that end in .yaml or .yml")
    return parents


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not readable as UTF-8 text: save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    values, origins = read_yaml(text, str(path))
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}:1: must hold `group: {{key: value}}` pairs, not a {type(values).__name__}")
    return values, origins


def _parse_override(override: str) -> tuple[dict[str, Any], str]:
    shown = repr(_short(redact(override)))
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise ConfigError(f"cannot read {shown}: write overrides as key.path=value, e.g. train.epochs=10")
    if UNPRINTABLE.search(override):
        raise ConfigError(f"cannot read {shown}: control characters and line ends are refused")
    if key.count(".") >= DEEPEST:
        raise ConfigError(f"cannot read {shown}: no key has so many dots")
    value, _ = read_yaml(text, f"the value in {shown}", place="{where}")
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested, key


def describe_errors(error: ValidationError, source: ConfigSource, known_keys: list[str]) -> str:
    """All problems of a configuration, one line each: place, key, what is wrong, what to write instead."""
    by_key: dict[tuple[str, ...], list[Any]] = {}
    for problem in error.errors():
        key = _key(problem, known_keys)
        # A value that is none of a field's alternatives has an error for each of them.
        alternative = () if problem["msg"].startswith(OTHERWISE) else (problem["msg"],)
        by_key.setdefault((key, *alternative), []).append(problem)
    # The alternative that was meant is the one whose problem lies deeper.
    deeper = {key for key, *_ in by_key for other, *_ in by_key if other.startswith(f"{key}.")}
    by_key = {place: problems for place, problems in by_key.items() if len(place) > 1 or place[0] not in deeper}
    lines = [
        f"{source.origin(key)}: {_describe(key, _joined(problems), known_keys)}"
        for (key, *_), problems in list(by_key.items())[:MOST_ERRORS]
    ]
    more = len(by_key) - MOST_ERRORS
    shown = [*lines, *([f"and {more} more"] if more > 0 else [])]
    head = "the configuration has " + ("an error" if len(by_key) == 1 else f"{len(by_key)} errors")
    return f"{head}: {shown[0]}" if len(lines) == 1 else "\n  ".join([head + ":", *shown])


def _key(problem: Any, known_keys: list[str]) -> str:
    """The dotted key of a problem, without the alternatives of a union, which its location names too."""
    parts = [str(part) for part in problem["loc"]]
    kept: list[str] = []
    for at, part in enumerate(parts):
        is_unknown_key = problem["type"] == "extra_forbidden" and at == len(parts) - 1
        within = any(".".join(kept[:end]) in known_keys for end in range(1, len(kept) + 1))
        is_alternative = not re.fullmatch(r"[a-z_0-9]+", part) or (within and part in SIMPLE)
        if is_unknown_key or not is_alternative:
            kept.append(part)
    return ".".join(kept)


def _joined(problems: list[Any]) -> Any:
    """One problem of all those that a value has with a field's alternatives."""
    wanted = list(dict.fromkeys(problem["msg"].removeprefix(OTHERWISE) for problem in problems))
    return problems[0] if len(wanted) == 1 else problems[0] | {"msg": OTHERWISE + ", or ".join(wanted)}


def _describe(key: str, problem: Any, known_keys: list[str]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{suggest(key, known_keys)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key}: {message[0].lower()}{message[1:]} (got {_short(redact(repr(problem['input'])))})"


def _short(text: str) -> str:
    return text if len(text) < 60 else text[:57] + "..."


def suggest(key: str, known_keys: list[str]) -> str:
    """What an unknown key may have been meant to be, as the end of a message."""
    same_leaf = [known for known in known_keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_leaf or difflib.get_close_matches(key, known_keys, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(near[:3])}?"
    return "; `reste config` prints every key"
