"""Where configuration values come from: YAML files with `extends`, `key=value` overrides, the origin of each value."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trainer.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `off` is a word, not False, and `5e-5` is a number, not a word."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag == "tag:yaml.org,2002:null"]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


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
        ConfigError: a file is missing, is no YAML mapping, extends itself, or an override has no `=`.
    """
    source = ConfigSource()
    for values, origins in _read_chain(path, []) if path else []:
        source.merge(values, origins)
    for override in overrides:
        values, key = _parse_override(override)
        source.merge(values, {key: "command line"})
    return source


def _read_chain(path: Path, seen: list[Path]) -> list[tuple[dict[str, Any], dict[str, str]]]:
    if not path.is_file():
        by = f" (extended by {seen[-1]})" if seen else ""
        raise ConfigError(f"there is no configuration file {path}{by}: check the path")
    if path.resolve() in [p.resolve() for p in seen]:
        raise ConfigError(f"{path} extends itself through {' -> '.join(map(str, seen))}: remove one `extends`")
    values, origins = _read_file(path)
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{origins['extends']}: extends must be the path of a file, or a list of them")
    chain = [link for parent in parents for link in _read_chain(path.parent / parent, [*seen, path])]
    return [*chain, (values, origins)]


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}:1: must hold `group: {{key: value}}` pairs, not a {type(values).__name__}")
    origins: dict[str, str] = {}
    _collect_origins(node, path, "", origins)
    return values, origins


def _collect_origins(node: yaml.Node | None, path: Path, prefix: str, origins: dict[str, str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        dotted = f"{prefix}{key.value}"
        place = f"{path}:{key.start_mark.line + 1}"
        if dotted in origins:
            raise ConfigError(f"{place}: {dotted} is set twice in this file: keep one")
        origins[dotted] = place
        _collect_origins(value, path, f"{dotted}.", origins)


def _parse_override(override: str) -> tuple[dict[str, Any], str]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"cannot read {override!r}: write overrides as key.path=value, e.g. train.epochs=10")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value in {override!r}: {' '.join(str(error).split())}") from None
    nested: Any = value
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested, key.strip()


def describe_errors(error: ValidationError, source: ConfigSource, known_keys: list[str]) -> str:
    """All problems of a configuration, one line each: place, key, what is wrong, what to write instead."""
    lines: dict[str, None] = {}
    for problem in error.errors():
        # Members of a union appear in the location as type names; a key holds none of their signs.
        parts = [str(part) for part in problem["loc"]]
        key = ".".join(part for part in parts if re.fullmatch(r"[a-z_0-9]+", part))
        lines[f"{source.origin(key)}: {_describe(key, problem, known_keys)}"] = None
    head = "the configuration has " + ("an error" if len(lines) == 1 else f"{len(lines)} errors")
    return f"{head}: " + next(iter(lines)) if len(lines) == 1 else "\n  ".join([head + ":", *lines])


def _describe(key: str, problem: Any, known_keys: list[str]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggest(key, known_keys)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    shown = repr(problem["input"])
    return f"{key}: {message[0].lower()}{message[1:]} (got {shown if len(shown) < 60 else shown[:57] + '...'})"


def _suggest(key: str, known_keys: list[str]) -> str:
    same_leaf = [known for known in known_keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_leaf or difflib.get_close_matches(key, known_keys, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(near[:3])}?"
    return "; `reste train CONFIG --dry-run` prints every key of a valid configuration"
