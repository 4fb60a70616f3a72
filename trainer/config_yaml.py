"""The YAML that configurations are written in: plain values with their places, and nothing that can hurt.

The text may be anybody's. It is composed into nodes, never constructed, so that no tag can make an object; anchors,
which let a few lines stand for billions, are refused, and so is everything too large, too deep or unprintable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from trainer.errors import ConfigError
from trainer.secrets import redact

LARGEST_FILE = 2**16
"""Bytes."""
DEEPEST = 20
"""Groups within groups."""
LONGEST_INT = 40
"""Digits: more than any 128-bit number has."""
LONGEST_KEY = 100
"""Characters."""

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""Control characters, line ends, invisible signs and halves of characters: no name, folder or address needs them."""

_TOO_DEEP = f"more than {DEEPEST} groups within each other are refused"
_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": re.compile(r"^(?:true|false)$"),
    "int": re.compile(r"^[-+]?[0-9]+$"),
    "float": re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    "null": re.compile(r"^(?:~|null|Null|NULL|)$"),
}
_FIRST = {"bool": "tf", "int": "-+0123456789", "float": "-+.0123456789", "null": ("~", "n", "N", "")}


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `off` is a word, not False, and `5e-5` is a number, not a word."""

    _depth = 0

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        # The scanner reads ahead, and takes the square of the depth.
        if self.flow_level > DEEPEST:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token_class)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(event, "anchors and aliases are refused: write the values out, or share a file by `extends`")
        self._depth += 1
        if self._depth > DEEPEST:
            raise _refused(event, _TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 would read as something else than text."""


for _name in ("null", "bool", "int", "float"):
    _Loader.add_implicit_resolver(_TAG + _name, _SCALARS[_name], list(_FIRST[_name]))
    _Dumper.add_implicit_resolver(_TAG + _name, _SCALARS[_name], list(_FIRST[_name]))


def read_yaml(text: str, where: str, *, place: str = "{where}:{line}") -> tuple[Any, dict[str, str]]:
    """The value of a YAML text, and for each dotted key of it the place that set it.

    Args:
        text: one document.
        where: its file, or what else it is, for messages.
        place: form of a place in it.

    Raises:
        ConfigError: it is not YAML, or more than plain values; names the line.
    """
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"{where} is larger than {LARGEST_FILE // 1024} KiB, which no configuration is")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        # Without the excerpt that PyYAML adds: the file may be one that was never meant to be shown.
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        told = error.problem or "it ends too early"
        raise ConfigError(f"{place.format(where=where, line=line)}: not readable as YAML: {redact(told)}") from None
    except yaml.reader.ReaderError as error:
        at = place.format(where=where, line=text.count("\n", 0, error.position) + 1)
        raise ConfigError(f"{at}: not readable as YAML: the character U+{error.character:04X} is refused") from None
    origins: dict[str, str] = {}
    reader = _Reader(where, place, origins)
    return (None if node is None else reader.value(node, "")), origins


def write_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML that `read_yaml` and readers of YAML 1.1 take for the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def _refused(event: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


class _Reader:
    """Turns nodes into values."""

    def __init__(self, where: str, place: str, origins: dict[str, str]) -> None:
        self._where = where
        self._place = place
        self._origins = origins

    def value(self, node: yaml.Node, key: str) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, f"{key}[]") for item in node.value]
        kind = node.tag.removeprefix(_TAG)
        if not isinstance(node, yaml.ScalarNode) or (kind != "str" and kind not in _SCALARS):
            raise self._error(node, f"the tag {node.tag.replace(_TAG, '!!')} is refused: write a plain value")
        return self._scalar(node, kind)

    def _mapping(self, node: yaml.MappingNode, prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, item in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.tag.removeprefix(_TAG) not in {"str", *_SCALARS}:
                raise self._error(name, "a key must be a word")
            text = self._text(name)
            if len(text) > LONGEST_KEY:
                raise self._error(name, f"a key of {len(text)} characters is refused")
            dotted = f"{prefix}.{text}" if prefix else text
            if text in values:
                raise self._error(name, f"{dotted} is set twice: keep one")
            self._origins[dotted] = self._at(name)
            values[text] = self.value(item, dotted)
        return values

    def _scalar(self, node: yaml.ScalarNode, kind: str) -> Any:
        text = self._text(node)
        if kind == "str":
            return text
        if not _SCALARS[kind].fullmatch(text):
            raise self._error(node, f"{text[:40]!r} is no {kind}")
        if kind == "int" and len(text) > LONGEST_INT:
            raise self._error(node, f"a number of {len(text)} digits is refused")
        if kind == "null":
            return None
        return text == "true" if kind == "bool" else (int if kind == "int" else float)(text)

    def _text(self, node: yaml.ScalarNode) -> str:
        text: str = node.value
        found = UNPRINTABLE.search(text)
        if found:
            raise self._error(node, f"the character U+{ord(found[0]):04X} is refused in keys and values")
        return text

    def _at(self, node: yaml.Node) -> str:
        return self._place.format(where=self._where, line=node.start_mark.line + 1)

    def _error(self, node: yaml.Node, problem: str) -> ConfigError:
        return ConfigError(f"{self._at(node)}: {problem}")
