"""No byte of a checkpoint can change unnoticed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from trainer import checkpoint

FLIPS = 1000


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = torch.nn.Linear(5, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 5)).sum().backward()
    optimizer.step()
    return checkpoint.save(
        tmp_path,
        {"model": net.state_dict(), "engine": {"optimizer": optimizer.state_dict(), "scaler": {}}},
        progress=checkpoint.Progress(
            120, 5760, 12.345678, {"val/loss": float("inf")}, {"val/top1": 51.25}, 90, 4711, [0.1, 1 / 3]
        ),
        config_yaml="seed: 1\nrun:\n  name: digits\n",
        about={"classes": ["zero", "één"], "world_size": 2, "config_digest": "0f" * 32},
    )


def altered(file: Path, offset: int, byte: int) -> bool:
    """Whether the checkpoint is found damaged with one byte changed; the byte is put back."""
    with file.open("r+b") as content:
        content.seek(offset)
        old = content.read(1)
        assert old != bytes([byte])
        for new, damaged in ((bytes([byte]), True), (old, False)):
            content.seek(offset)
            content.write(new)
            content.flush()
            if damaged:
                found = checkpoint.problems(file.parent)
    return any(file.name in problem for problem in found)


def test_a_thousand_random_flips_are_all_detected_and_their_file_named(saved: Path) -> None:
    draw = random.Random(20)
    files = sorted(saved.iterdir())
    assert [file.name for file in files] == ["config.yaml", "engine.pt", "manifest.json", "model.pt"]
    for _ in range(FLIPS):
        file = draw.choice(files)
        offset = draw.randrange(file.stat().st_size)
        byte = file.read_bytes()[offset] ^ draw.randrange(1, 256)
        assert altered(file, offset, byte), f"{file.name}, byte {offset} as {byte}"
    assert checkpoint.problems(saved) == []


def test_every_byte_of_the_manifest_counts(saved: Path) -> None:
    manifest = saved / checkpoint.MANIFEST
    content = manifest.read_bytes()
    for offset, byte in enumerate(content):
        # The lowest bit makes another digit, the sixth turns capitals into small letters and line breaks into stars.
        assert all(altered(manifest, offset, byte ^ 1 << bit) for bit in (0, 5)), offset


def test_bytes_lost_or_added_anywhere_are_detected(saved: Path) -> None:
    for file in sorted(saved.iterdir()):
        content = file.read_bytes()
        for other in (content[:-1], content + b"\n", content + b"\0", content[1:], b"", content[:9] + content[10:]):
            file.write_bytes(other)
            assert checkpoint.problems(saved), file
        file.write_bytes(content)
    assert checkpoint.problems(saved) == []
