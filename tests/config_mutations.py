"""Seeded damage to configurations: values, keys, types, structure and bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.0, -0.0, 1e-300, 1e300, 0.5, "", " ", "x",
    "0", "1e5", "null", "true", "5ep", "-3ep", "150%", "nan ep", "../../up", "/etc/passwd", "a" * 300, "é", "\u202e",
    "{}", "[]", "*a", "&a", "!!int", "%", "@", "`", "hf-hub:a/b", "sqlite://", "http://u:p@h", "file:x", [], {},
    [[]], {"a": {}}, [1, 2], [1.5, -2.0], ["norm"], {"images": 0}, {"images": 64}, "world", "skip 3",
)  # fmt: skip
SIGNS = (*(bytes([code]) for code in b"\x00\xff\t\r\n:-#&*!{}[]'\"|>%@`?, \xc3"), b"\xef\xbb\xbf", b"---\n", b"<<: ")


def places(values: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of nested groups, as a path."""
    found = []
    for key, value in values.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += places(value, (*above, key))
    return found


def group_of(values: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    """The group that holds the last key of a path."""
    for key in place[:-1]:
        values = values[key]
    return values


def change_value(dice: random.Random, values: dict[str, Any]) -> None:
    place = dice.choice(places(values))
    group_of(values, place)[place[-1]] = dice.choice(ODD)


def change_key(dice: random.Random, values: dict[str, Any]) -> None:
    place = dice.choice(places(values))
    group = group_of(values, place)
    key = list(place[-1])
    at = dice.randrange(len(key))
    key[at] = dice.choice("abxyz_. -é")
    group["".join(key)] = group.pop(place[-1])


def wrap(dice: random.Random, values: dict[str, Any]) -> None:
    place = dice.choice(places(values))
    group = group_of(values, place)
    group[place[-1]] = dice.choice([lambda v: [v], lambda v: {"value": v}, str, json.dumps])(group[place[-1]])


def move(dice: random.Random, values: dict[str, Any]) -> None:
    place, other = dice.choice(places(values)), dice.choice(places(values))
    value = group_of(values, place).pop(place[-1])
    values[other[-1]] = value


def drop(dice: random.Random, values: dict[str, Any]) -> None:
    place = dice.choice(places(values))
    del group_of(values, place)[place[-1]]


STRUCTURE: tuple[Callable[[random.Random, dict[str, Any]], None], ...] = (change_value, change_key, wrap, move, drop)


def damage_bytes(dice: random.Random, content: bytes) -> bytes:
    """Flip, insert, delete, double or cut."""
    damaged = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at, length = dice.randrange(len(damaged) + 1), dice.randint(1, 30)
        kind = dice.randrange(5)
        if kind == 0 and damaged:
            damaged[at % len(damaged)] ^= 1 << dice.randrange(8)
        elif kind == 1:
            damaged[at:at] = dice.choice(SIGNS) * dice.choice((1, 1, 1, 50))
        elif kind == 2:
            del damaged[at : at + length]
        elif kind == 3:
            damaged[at:at] = damaged[at : at + length]
        else:
            del damaged[at + 200 * length :]
    return bytes(damaged)


def damaged_config(seed: int, shipped: list[Path]) -> bytes:
    """One damaged copy of a shipped configuration; the same for the same seed. Its parents are named absolutely."""
    dice = random.Random(seed)
    path = dice.choice(shipped)
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    parents = values.get("extends", [])
    if parents:
        named = [parents] if isinstance(parents, str) else parents
        values["extends"] = [str((path.parent / parent).resolve()) for parent in named]
    if seed % 2:
        for _ in range(dice.randint(1, 3)):
            dice.choice(STRUCTURE)(dice, values) if values else None
    content = yaml.safe_dump(values, allow_unicode=True).encode()
    return content if seed % 2 else damage_bytes(dice, content)
