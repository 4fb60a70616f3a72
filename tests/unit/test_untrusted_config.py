"""A configuration may be anybody's: whatever it holds, it is plain values or one line of error, at once."""

from __future__ import annotations

import time
import tracemalloc
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from trainer.config import load_config
from trainer.config_yaml import read_yaml, write_yaml
from trainer.errors import ConfigError

pytestmark = pytest.mark.timeout(60)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def invisible(text: str) -> list[str]:
    """Characters that Unicode knows as controls, formats, halves and line ends."""
    return [character for character in text if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def refused(path: Path, *overrides: str) -> str:
    """The one line that refuses a configuration, within a second and 50 MB."""
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    assert time.process_time() - began < 5.0
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert not invisible(str(caught.value))
    return str(caught.value)


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))
HOSTILE = {
    "python/object": ("seed: !!python/object/apply:os.system ['touch hurt']", ":1: the tag !!python/object/apply:os"),
    "python/name": ("seed: !!python/name:os.system ''", ":1: the tag !!python/name:os.system"),
    "new object": ("a: 1\nseed: !!python/object/new:os.system ['touch hurt']", ":2: the tag !!python/object/new"),
    "own tag": ("!mine\nseed: 1", ":1: the tag !mine"),
    "tag of a key": ("!mine seed: 1", "a key must be a word"),
    "binary": ("run: {name: !!binary aGVsbG8=}", "the tag !!binary"),
    "date": ("seed: !!timestamp 2001-01-01", "the tag !!timestamp"),
    "billion laughs": (LAUGHS, ":1: not readable as YAML: anchors and aliases are refused"),
    "endless": ("a: &a [*a]", "anchors and aliases are refused"),
    "anchored key": ("&a seed: 1", "anchors and aliases are refused"),
    "merge key": ("<<: {seed: 1}", "unknown key <<"),
    "deep lists": ("seed: " + "[" * 60000, "more than 20 groups within each other"),
    "deep groups": ("{a: " * 10000, "more than 20 groups within each other"),
    "deep dashes": ("- " * 30000, "more than 20 groups within each other"),
    "deep blocks": ("".join(" " * n + "a:\n" for n in range(100)), "more than 20 groups within each other"),
    "deep and whole": ("seed: " + "[" * 20 + "]" * 20, "more than 20 groups within each other"),
    "huge int": ("seed: " + "9" * 60000, ":1: a number of 60000 digits is refused"),
    "big int": ("seed: " + "9" * 39, "seed: input should be less than 9223372036854775808"),
    "huge float": ("optim: {lr: 1e999}", "optim.lr: input should be a finite number"),
    "nan": ("optim: {lr: .nan}", "optim.lr: input should be a valid number"),
    "infinity": ("optim: {lr: -.inf}", "optim.lr: input should be a valid number"),
    "no int": ("seed: !!int abc", "'abc' is no int"),
    "twice": ("seed: 1\nrun: {name: a}\nseed: 2", ":3: seed is set twice"),
    "twice within": ("train:\n  epochs: 1\n  epochs: 2", ":3: train.epochs is set twice"),
    "twice in a list": ("seed: [{a: 1, a: 2}]", "seed[].a is set twice"),
    "latin-1": (b"seed: 1\nrun: {name: \xe9}", ":2: not readable as UTF-8"),
    "utf-16": ("seed: 1".encode("utf-16"), ":1: not readable as UTF-8"),
    "nul": (b"seed: 1\n\x00", ":2: not readable as YAML: the character U+0000"),
    "escaped nul": ('run: {dir: "a\\0b"}', "the character U+0000 is refused"),
    "line end": ('tracking: {experiment: "a\\nb"}', "the character U+000A is refused"),
    "terminal": ('tracking: {experiment: "\\e[2J"}', "the character U+001B is refused"),
    "half a character": ('tracking: {experiment: "\\ud800"}', "the character U+D800 is refused"),
    "long key": ("a" * 500 + ": 1", "a key of 500 characters is refused"),
    "no key": ("? [a]\n: b", "a key must be a word"),
    "two documents": ("--- {}\n--- {}", ":2: not readable as YAML"),
    "too large": ("#" * 70000, "is larger than 64 KiB"),
    "open": ("{", "not readable as YAML"),
    "long name": ("run: {name: " + "a" * 300 + "}", "run.name: string should have at most 200 characters"),
    "dash": ("run: {name: -rf}", "run.name: string should match"),
    "up": ("run: {name: ..}", "run.name: string should match"),
    "path": ("run: {name: a/b}", "run.name: string should match"),
    "newline": ('run: {name: "a\\n"}', "the character U+000A is refused"),
    "long folder": ("run: {dir: " + "a" * 5000 + "}", "run.dir: string should have at most 2000 characters"),
    "hub": ("model: {name: 'hf-hub:someone/net'}", "model.name: must be the name of a model, not an address"),
    "local folder": ("model: {name: 'local-dir:/tmp/net'}", "model.name: must be the name of a model"),
    "folder": ("model: {name: ../net}", "model.name: must be the name of a model"),
    "extends passwords": ("extends: /etc/passwd", ":1: extends must name files that end in .yaml or .yml"),
    "extends environment": ("extends: /proc/self/environ", "extends must name files that end in .yaml or .yml"),
    "extends itself": ("extends: x.yaml", "extends itself"),
    "extends a folder": ("extends: folder.yaml", "there is no configuration file"),
    "extends without end": ("extends: [y0.yaml, y0.yaml]", "extends more than 32 files"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_configuration_needs_is_refused_in_one_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, says = HOSTILE[name]
    (tmp_path / "folder.yaml").mkdir()
    for level in range(20):
        write(tmp_path / f"y{level}.yaml", f"extends: [y{level + 1}.yaml, y{level + 1}.yaml]")
    write(tmp_path / "y20.yaml", "")
    assert says in refused(write(tmp_path / "x.yaml", content))
    assert not (tmp_path / "hurt").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("", "write overrides as key.path=value"),
        ("seed", "write overrides as key.path=value"),
        ("=3", "write overrides as key.path=value"),
        (".=3", "write overrides as key.path=value"),
        ("train..epochs=3", "write overrides as key.path=value"),
        ("." * 3000 + "=3", "write overrides as key.path=value"),
        ("a." * 3000 + "a=3", "no key has so many dots"),
        ("seed=1=2", "got '1=2'"),
        ("seed=[", "not readable as YAML"),
        ("seed=!!python/object/apply:os.system ['x']", "the tag !!python/object/apply:os.system is refused"),
        ("seed=*a", "anchors and aliases are refused"),
        ("seed=\n1", "line ends are refused"),
        ("run.name=\udce9", "control characters"),
        ("seed=" + "9" * 5000, "a number of 5000 digits"),
        ("train={epochs: 1, epochs: 2}", "epochs is set twice"),
        ("--seed=3", "unknown key --seed"),
    ],
)
def test_an_odd_override_is_refused_in_one_line(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_of_very_many_errors_the_first_are_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", "".join(f"k{number}: 1\n" for number in range(3000)))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the configuration has 3000 errors:"
    assert len(lines) == 22
    assert lines[-1] == "  and 2980 more"


def test_an_error_in_a_file_does_not_show_the_file(tmp_path: Path) -> None:
    write(tmp_path / "other.yaml", "user: ann\npassword: [hunter2\n")
    assert "hunter2" not in refused(write(tmp_path / "x.yaml", "extends: other.yaml"))


LOOK_LIKE_NUMBERS = (
    "010",
    "08",
    "-0",
    "+7",
    "1e5",
    "1.",
    ".5",
    "0x10",
    "0o7",
    "1_000",
    "yes",
    "off",
    "~",
    "",
    "2001-01-01",
)


@pytest.mark.parametrize("text", LOOK_LIKE_NUMBERS)
def test_words_and_numbers_are_written_so_that_every_reader_takes_them_for_the_same(text: str) -> None:
    written = write_yaml({"key": text})
    assert read_yaml(written, "here")[0] == {"key": text}
    assert yaml.safe_load(written) == {"key": text}


def test_leading_zeros_are_decimal(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "a.yaml", "seed: 010")).seed == 10
