"""The site file: what is best on this machine, beneath what every configuration says.

A value is taken from the command line, else from the configuration, else from the site file, else it is the default of
the schema. Only keys that cannot change what is learnt may stand in it, so that a run may go on where there is another
one, or none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.config_source import ConfigSource, read_source
from trainer.config_yaml import write_yaml
from trainer.errors import ConfigError

VARIABLE = "RESTE_SITE"
KEYS = ("data.workers", "data.prefetch", "data.decode_share", "data.dont_use_mmap")
"""All that a site file may hold."""


def site_file() -> Path | None:
    """Where this user's site file is or would be; None if there is to be none.

    RESTE_SITE names it, and means none if it is empty; else it is `reste/site.yaml` in XDG_CONFIG_HOME, or in
    `~/.config`.
    """
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).expanduser() if named else None
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(folder) if Path(folder).is_absolute() else Path("~/.config").expanduser()) / "reste" / "site.yaml"


def read_site() -> ConfigSource:
    """The site file's values with their places; nothing if there is no such file.

    Raises:
        ConfigError: it cannot be read, or holds a key that is no machine's to set.
    """
    path = site_file()
    if path is None or not path.exists():
        return ConfigSource()
    source = read_source(path, [])
    for key, _ in leaves(source.values):
        if key not in KEYS:
            raise ConfigError(
                f"{source.origin(key)}: {key} is not for the site file, which may set {', '.join(KEYS)}: set it in a "
                "configuration"
            )
    return source


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested groups."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def told(path: Path, overrides: list[str]) -> str | None:
    """What of the site file a configuration leaves in force, in words; None if there is no site file.

    Raises:
        ConfigError: as `trainer.config.load_config`.
    """
    source = read_site()
    if not source.values:
        return None
    set_above = dict(leaves(read_source(path, overrides).values))
    kept = [f"{key}={value} ({source.origin(key)})" for key, value in leaves(source.values) if key not in set_above]
    return ", ".join(kept) or f"nothing of {site_file()}: the configuration or the command line sets it all"


def writable_site() -> Path:
    """Where `write_site` would write.

    Raises:
        ConfigError: nowhere, or where this user may not write, or over a file that is not in order.
    """
    path = site_file()
    if path is None:
        raise ConfigError(f"{VARIABLE} is empty, which means no site file: unset it, or let it name a file")
    read_site()
    above = path if path.exists() else next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(above, os.W_OK) or (above != path and not above.is_dir()):
        raise ConfigError(f"{path} cannot be written: let {VARIABLE} name a file that can")
    return path


def write_site(values: Mapping[str, Any], comment: str) -> Path:
    """Put values into the site file beside what it holds already; a reader sees the old file or the new one.

    Args:
        values: by dotted key, all of them in `KEYS`.
        comment: lines that tell where they come from.

    Raises:
        ConfigError: the file there is not in order, or it cannot be written.
    """
    assert set(values) <= set(KEYS)
    path = writable_site()
    merged = dict(leaves(read_site().values)) | dict(values)
    nested: dict[str, Any] = {}
    for key, value in sorted(merged.items(), key=lambda item: KEYS.index(item[0])):
        group, _, name = key.partition(".")
        nested.setdefault(group, {})[name] = value
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    stump = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stump.write_text(head + write_yaml(nested), encoding="utf-8")
        stump.replace(path)
    except OSError as error:
        stump.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written ({error.strerror}): let {VARIABLE} name a file that can") from None
    return path
