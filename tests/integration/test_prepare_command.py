"""`reste prepare imagenet` as it is typed: what it says, and its exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import imagenet_sources as made
import pytest
from trainings import reste


def test_the_command_says_what_it_read_and_what_is_there(tmp_path: Path) -> None:
    source, root = made.official(tmp_path / "source"), tmp_path / "root"
    given = ("prepare", "imagenet", source, root, "--expect", "any", "--format", "shards", "--max-side", 60)
    done = reste(*given, "--shard-mib", 1, "--workers", 2)
    assert (done.returncode, done.stderr) == (0, f"reading the official archives in {source}\n")
    assert f"{root}: 16 train, 8 val images in 4 classes" in done.stdout
    found = json.loads((root / "index" / "index.json").read_text())
    assert (found["max_side"], found["source"]) == (60, f"the official archives in {source}")
    assert sorted(os.listdir(root / "shards")) == ["train-000000.tar", "val-000000.tar"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--layout", "zip"], 2, "error: --layout zip is none of official, kaggle, webdataset, tree"),
        ([], 3, "ILSVRC2012_devkit_t12.tar.gz has MD5"),
    ],
)
def test_what_a_user_gets_wrong_ends_in_one_line(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    done = reste("prepare", "imagenet", source, tmp_path / "root", *arguments)
    assert done.returncode == code
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("reading ")]
    assert says in line
