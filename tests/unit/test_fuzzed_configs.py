"""500 damaged copies of the shipped configurations: each loads, or ends in one line that names what is wrong."""

from __future__ import annotations

import resource
import time
import unicodedata
from pathlib import Path

import pytest
from config_mutations import damaged_config
from trainings import ROOT, reste

from trainer.config import Config, load_config
from trainer.errors import ConfigError

SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
COUNT = 500


def outcome(path: Path) -> Config | str:
    try:
        return load_config(path)
    except ConfigError as error:
        return str(error)


def test_a_damaged_configuration_loads_or_is_refused_in_words(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    for seed in range(COUNT):
        path = tmp_path / f"{seed}.yaml"
        path.write_bytes(damaged_config(seed, SHIPPED))
        began = time.process_time()
        found = outcome(path)
        assert time.process_time() - began < 3.0, seed
        if isinstance(found, Config):
            loaded += 1
            again = tmp_path / f"{seed}-again.yaml"
            again.write_text(found.to_yaml(), encoding="utf-8")
            assert outcome(again) == found or "***" in found.to_yaml(), seed
        else:
            head, *more = found.splitlines()
            # All errors of a configuration come at once, each in a line of its own below the first.
            assert not more or all(line.startswith("  ") for line in more), (seed, found)
            assert not [c for c in found.replace("\n", "") if unicodedata.category(c) in ("Cc", "Cs")], (seed, found)
            assert f"{seed}.yaml" in found or "configs/" in found or "default" in found, (seed, found)
            assert len(head) < 1000, (seed, head)
    assert COUNT / 10 < loaded < COUNT / 2, f"{loaded} loaded: the damage is too small or too great"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024, "KiB"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_ends_with_one_error_and_exit_code_2(tmp_path: Path) -> None:
    for seed in range(12):
        path = tmp_path / f"{seed}.yaml"
        path.write_bytes(damaged_config(seed, SHIPPED))
        expected = outcome(path)
        done = reste("train", path, "--dry-run", timeout_s=120)
        assert "Traceback" not in done.stderr, (seed, done.stderr)
        if isinstance(expected, str):
            assert done.returncode == 2, (seed, done.stderr)
            assert done.stderr == f"error: {expected}\n", seed
            assert done.stdout == "", seed
        else:
            assert done.returncode in (0, 2), (seed, done.stderr)
            assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == (
                0 if done.returncode == 0 else 1
            ), (seed, done.stderr)
