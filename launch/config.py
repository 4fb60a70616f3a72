"""Prints `reste config`."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from trainer import reference
from trainer.config import Config, schema_keys
from trainer.config_source import suggest
from trainer.errors import ConfigError


def print_keys(prefix: str) -> None:
    """A table of the keys that begin with a prefix.

    Raises:
        ConfigError: none does.
    """
    found = reference.keys(prefix)
    if not found:
        raise ConfigError(f"there is no key or group {prefix}{suggest(prefix, schema_keys(Config))}")
    table = Table(box=box.SIMPLE, title_justify="left")
    for heading in ("key", "takes", "default", "what it is for"):
        table.add_column(heading, overflow="fold")
    for key in found:
        mark = " +" if key.may_change else ""
        table.add_row(f"{key.name}{mark}", key.takes, key.default, key.description)
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print("+ may have another value when a run is resumed", soft_wrap=True)
