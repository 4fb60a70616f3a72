"""From YAML and overrides to a `Config`, and what of one is compared, stored and shown.

A configuration is YAML read by `load_config`; every value may be overridden as `group.key=value`. Unknown keys and
wrong types are refused, all at once, each with the place it came from. What may be set: `trainer.config_schema`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from trainer.config_schema import Config
from trainer.config_source import ConfigSource, describe_errors, read_source
from trainer.errors import ConfigError
from trainer.site import read_site

__all__ = [
    "MAY_CHANGE",
    "Config",
    "config_digest",
    "fixed_values",
    "flat_config",
    "flatten",
    "load_config",
    "schema_keys",
    "validate",
]

# Values that do not change what is computed: a run may go on with others.
MAY_CHANGE = (
    "resume", "engine", "deepspeed.", "run.", "data.root", "data.loader", "data.workers", "data.prefetch",
    "data.decode_share", "data.dont_use_mmap", "data.on_error", "data.max_quarantined",
    "train.max_steps", "train.nonfinite", "train.cuda_graphs", "log.every", "log.print_s", "log.profile",
    "checkpoint.", "tracking.", "registry.", "eval.every", "eval.batch_size",
)  # fmt: skip


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def flat_config(config: Config) -> dict[str, Any]:
    """Every value of a configuration under its dotted key, as JSON types."""
    return flatten(json.loads(config.model_dump_json()))


def fixed_values(config: Config) -> dict[str, Any]:
    """The values that a resumed run must share with the run it continues."""
    return {key: value for key, value in flat_config(config).items() if not key.startswith(MAY_CHANGE)}


def config_digest(config: Config) -> str:
    """SHA-256 over the values that decide what is computed."""
    canonical = json.dumps(fixed_values(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def load_config(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a configuration file over the site file, apply `key.path=value` overrides, validate everything.

    Args:
        path: a YAML file; its `extends` key names a parent, relative to the file, or a list of them, the later wins.
            None: the defaults alone, with those of the site file.
        overrides: strings `key.path=value`, the value parsed as YAML; later ones win.

    Raises:
        ConfigError: naming every unknown key and wrong value at once, with file and line.
    """
    source = read_site()
    given = read_source(None if path is None else Path(path), list(overrides))
    source.merge(given.values, given.origins)
    return validate(source)


def validate(source: ConfigSource) -> Config:
    """Check the merged values against the schema.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        # JSON mode: strict about types, yet lists may fill tuples.
        return Config.model_validate_json(json.dumps(source.values), strict=True)
    except ValidationError as error:
        raise ConfigError(describe_errors(error, source, schema_keys(Config))) from None


def schema_keys(group: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of the schema, groups included."""
    keys = []
    for name, field in group.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += schema_keys(field.annotation, f"{prefix}{name}.")
    return keys
