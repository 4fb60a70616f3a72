"""A checkpoint as a graph that torch alone can use."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from made_checkpoints import LABELS, configuration, weights_of, write_checkpoint
from torch.export import ExportedProgram

from trainer.checkpoints import choose_weights
from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.export.program import (
    Deployed,
    describe,
    evaluated_network,
    export_program,
    load_program,
    save_program,
)

ALONE = """
import sys

class NothingOfOurs:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"reste", "models", "trainer", "launch", "timm", "mlflow", "torchvision"}:
            raise ImportError(name)

sys.meta_path.insert(0, NothingOfOurs())
import torch

torch.set_num_threads(1)
equal = 0
for file, known in zip(sys.argv[1::2], sys.argv[2::2]):
    program = torch.export.load(file).module()
    for images, logits in torch.load(known, weights_only=True):
        assert torch.equal(program(images), logits), (program(images) - logits).abs().max()
        equal += 1
print(equal, "equal")
"""


KINDS = {
    "plain": (),
    "reference": ("train.channels_last=false", "model.numerics=reference", "train.precision=fp64"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ExportedProgram, Deployed]]:
    """For each kind a checkpoint, its program (saved beside it as `model.pt2`) and its facts."""
    found = {}
    for kind, overrides in KINDS.items():
        path = write_checkpoint(tmp_path_factory.mktemp(kind), *overrides)
        program, facts = export_program(path)
        save_program(program, facts, path.parent / "model.pt2")
        found[kind] = (path, program, facts)
    return found


def test_torch_alone_gives_the_same_logits_bit_for_bit(tmp_path: Path, exported: dict) -> None:
    arguments = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind, (path, _, facts) in exported.items():
            torch.save(known_logits(path, facts), tmp_path / f"{kind}.pt")
            arguments += [path.parent / "model.pt2", tmp_path / f"{kind}.pt"]
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, "-I", "-c", ALONE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "12 equal\n", done.stderr


def known_logits(path: Path, facts: Deployed) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and what the network itself says of them."""
    model = evaluated_network(path, load_config(path / "config.yaml"), facts)
    known = []
    for count in (1, 5, 16):
        images = torch.randn((count, 3, 16, 16), dtype=getattr(torch, facts.dtype))
        laid = images.to(memory_format=torch.channels_last) if facts.channels_last else images
        with torch.no_grad():
            logits = model(laid)
        assert logits.std() > 0.01
        # The graph does not depend on how its input lies in memory.
        known += [(images, logits), (laid, logits)]
    return known


def holds_objects(content: bytes) -> bool:
    """Whether this is a pickle, or the archive with one in it that torch makes of a tensor; numbers are neither."""
    pickle = content[:1] == b"\x80" and 2 <= content[1] <= 5 and content.endswith(b".")
    return pickle or content.startswith(b"PK\x03\x04")


def test_the_graph_holds_aten_operators_only_and_the_file_no_objects(exported: dict) -> None:
    path, program, _ = exported["plain"]
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {name.split(".")[0] for name in called} == {"aten"}
    with zipfile.ZipFile(path.parent / "model.pt2") as archive:
        pickled = [name for name in archive.namelist() if holds_objects(archive.read(name))]
        assert pickled == ["archive/data/sample_inputs/model.pt"]
        (images,), options = torch.load(io.BytesIO(archive.read(pickled[0])), weights_only=True)
    assert (images.shape, options) == ((2, 3, 16, 16), {})


def test_the_file_says_what_one_needs_to_use_it(exported: dict) -> None:
    path, _, facts = exported["plain"]
    _, read = load_program(path.parent / "model.pt2")
    assert read == facts
    assert read == Deployed(
        labels=LABELS, named=10, image_size=16, resize=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        dtype="float32", channels_last=True, precision="fp32", model="resnet20_1w1a", weight_bits=1,
        activation_bits=1, weights="model", step=34, config_digest="c0ffee", data_digest="da7a", world_size=2,
        metrics={"val/loss": 0.5, "val/top1": 90.0, "val/top5": 99.0},
    )  # fmt: skip


def test_outputs_that_no_class_has_are_numbers_and_no_classes(tmp_path: Path) -> None:
    more = write_checkpoint(tmp_path / "more", "model.num_classes=12")
    facts = describe(more, load_config(more / "config.yaml"), "model")
    assert (facts.labels, facts.classes) == ([*LABELS, "10", "11"], LABELS)
    unnamed = write_checkpoint(tmp_path / "unnamed", "model.num_classes=10", about={"classes": None})
    facts = describe(unnamed, load_config(unnamed / "config.yaml"), "model")
    assert (facts.labels, facts.classes) == ([str(number) for number in range(10)], None)


def test_the_moving_average_is_taken_if_there_is_one(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "train.ema=0.9", "augment.eval_resize=18")
    config = load_config(path / "config.yaml")
    weights = choose_weights(path, "auto")
    facts = describe(path, config, weights)
    assert (facts.weights, facts.resize) == ("ema", 18)
    name = "layer1.0.conv1.weight"
    saved = torch.load(path / "ema.pt", weights_only=True)[name]
    assert torch.equal(evaluated_network(path, config, facts).state_dict()[name], saved)
    assert facts.metrics["val/top1"] == 90.0
    assert describe(path, config, choose_weights(path, "model")).metrics == {}, "the run did not evaluate these"


def test_accuracies_of_another_step_are_not_given_as_its_own(tmp_path: Path) -> None:
    from trainer import checkpoint

    config = configuration("eval.every=1ep", "train.epochs=3")
    early = {"val/loss": 1.0, "val/top1": 50.0, "val/top5": 60.0}

    def metrics(step: int, *, due: bool = False) -> dict[str, float]:
        progress = checkpoint.Progress(step, 0, 1.0, early, early, 17, 0, [], evaluation_due=due)
        about = {"classes": LABELS, "config_digest": "c", "data_digest": "d", "world_size": 1, "steps_per_epoch": 17}
        path = checkpoint.save(
            tmp_path / "checkpoints", {"model": weights_of(config)}, progress=progress, config_yaml=config.to_yaml(),
            about=about,
        )  # fmt: skip
        return describe(path, config, "model").metrics

    assert metrics(17) == early
    assert metrics(20) == {}, "between two evaluations"
    assert metrics(34) == early, "the end of an epoch"
    assert metrics(51, due=True) == {}, "stopped before its evaluation"


def test_what_is_no_exported_network_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="export or register it again"):
        load_program(tmp_path / "missing.pt2")
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="export or register it again"):
        load_program(tmp_path / "model.pt2")
    path = write_checkpoint(tmp_path)
    (path / "model.pt").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"model.pt is damaged.*name another checkpoint"):
        export_program(path)
