"""Every key of a configuration in words, from the schema itself: what it takes, its default, what it is for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from trainer.config import MAY_CHANGE, Config


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: dotted.
        takes: the values that it takes, in words.
        default: as YAML has it.
        may_change: whether a run may be resumed with another value.
        description: what it is for; may be empty where the name says all.
    """

    name: str
    takes: str
    default: str
    may_change: bool
    description: str


def keys(prefix: str = "") -> list[Key]:
    """The keys that begin so, in the order of the schema; all by default."""
    schema = Config.model_json_schema()
    found = _keys(Config, schema, schema.get("$defs", {}), "")
    return [key for key in found if key.name == prefix or key.name.startswith(f"{prefix}." if prefix else "")]


def groups() -> dict[str, str]:
    """What each group of keys is about, by its name."""
    fields = Config.model_fields.items()
    return {
        name: (field.annotation.__doc__ or "").strip().splitlines()[0]
        for name, field in fields
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _keys(group: type[BaseModel], schema: Any, definitions: Any, prefix: str) -> Iterator[Key]:
    for name, field in group.model_fields.items():
        within = schema["properties"][name]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, _resolved(within, definitions), definitions, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        yield Key(
            name=prefix + name,
            takes=_takes(within, definitions),
            default=json.dumps(default, default=list),
            may_change=(prefix + name).startswith(MAY_CHANGE),
            description=field.description or "",
        )


def _resolved(schema: Any, definitions: Any) -> Any:
    place = schema.get("$ref") or next((each["$ref"] for each in schema.get("allOf", ()) if "$ref" in each), None)
    return definitions[place.rpartition("/")[2]] if place else schema


def _takes(schema: Any, definitions: Any) -> str:
    schema = _resolved(schema, definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_takes(each, definitions) for each in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("prefixItems")
        return (
            f"[{', '.join(_takes(each, definitions) for each in items)}]"
            if items
            else (f"list of {_takes(schema.get('items', {}), definitions)}")
        )
    if kind == "object":
        inner = [f"{name}: {_takes(each, definitions)}" for name, each in schema.get("properties", {}).items()]
        return f"{{{', '.join(inner)}}}" if inner else "mapping"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {schema[word]:g}" for word, sign in bounds.items() if word in schema)
    words = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
    }
    return " ".join(part for part in (words.get(kind, "anything"), limits) if part)


def markdown() -> str:
    """All keys as a page."""
    about = groups()
    lines = [
        "# Every key of a configuration",
        "",
        "Written by `reste config --markdown`. `reste config train` prints the keys of a group, `reste train CONFIG "
        "--dry-run` all",
        "values that a file comes to. Keys with a + may have another value when a run is resumed "
        "([why](resume.md#resume)).",
    ]
    group = None
    for key in keys():
        name = key.name.partition(".")[0]
        if name != group:
            if group is None or group in about or name in about:
                lines += ["", f"## `{name}`" if group else "## Of the whole", ""]
                lines += [about[name], ""] if name in about else []
                lines += ["| key | | takes | default | |", "|---|---|---|---|---|"]
            group = name
        cells = (f"`{key.name}`", "+" if key.may_change else "", key.takes, f"`{key.default}`", key.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
