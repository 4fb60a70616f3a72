"""`reste export` as a user meets it: one file of each kind, held against the trained network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_checkpoints import LABELS, write_checkpoint
from safetensors import safe_open
from trainings import ROOT, SMALL, environment, reste
from typer.testing import CliRunner

from launch.cli import app
from launch.export import print_export
from trainer.config import load_config
from trainer.errors import ConfigError, DataError
from trainer.export.agreement import noise
from trainer.export.compiled import kernels
from trainer.export.export import SUFFIX, export
from trainer.export.native import NativeNet
from trainer.export.onnx_file import run_onnx
from trainer.export.packed import PackedNet, read_packed
from trainer.export.program import evaluated_network
from trainer.export.threads import one_thread


def test_packed_agrees_on_every_image_of_a_data_set(tmp_path: Path, digits: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", about={"classes": [str(digit) for digit in range(10)]})
    out = tmp_path / "net.safetensors"
    words = ["export", str(tmp_path / "run"), "--to", "packed", "--out", str(out), "--data", str(digits), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    same = found["agreement"]
    assert (same["images"], same["same_top1"], same["largest_difference"]) == (355, 355, 0.0)
    assert same["correct1"] == same["correct1_trained"] > 0
    assert found["checkpoint"] == str(checkpoint)
    assert found["bytes"] == out.stat().st_size
    assert found["binary_bytes_float32"] / found["binary_bytes"] > 25


def test_a_network_with_more_outputs_than_classes_is_compared_on_its_own_data(tmp_path: Path, digits: Path) -> None:
    classes = [str(digit) for digit in range(10)]
    write_checkpoint(tmp_path / "run", "model.num_classes=12", about={"classes": classes})
    found = export(tmp_path / "run", "packed", out=tmp_path, data=digits)
    assert len(found.facts.labels) == 12
    assert (found.agreement.images, found.agreement.largest_difference) == (355, 0.0)


def test_data_of_other_classes_is_refused_and_the_file_before_stays(tmp_path: Path, digits: Path) -> None:
    write_checkpoint(tmp_path / "run")  # its ten classes are called naught to nine
    out = tmp_path / "net.safetensors"
    out.write_bytes(b"before")
    with pytest.raises(ConfigError, match=r"naught, one, two, .* data has 10 \(0, 1, 2"):
        export(tmp_path / "run", "packed", out=out, data=digits)
    with pytest.raises(DataError):
        export(tmp_path / "run", "packed", out=out, data=tmp_path / "absent")
    assert out.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors", "run"]


def test_a_network_trained_in_low_precision_is_compared_as_it_was_evaluated(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", "train.precision=bf16")
    done = export(tmp_path / "run", "packed", out=tmp_path)
    model = evaluated_network(done.checkpoint, load_config(done.checkpoint / "config.yaml"), done.facts)
    ((images, _),) = noise(done.facts)
    with one_thread(), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(images)
    assert expected.dtype == torch.bfloat16
    with one_thread():
        difference = (PackedNet(read_packed(done.path))(images) - expected).abs().max().item()
    assert done.agreement.largest_difference == pytest.approx(difference, rel=1e-6)
    assert difference > 0


def test_the_screen_tells_size_and_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "run")
    print_export(Path("run"), "packed", out=None, half=True, weights="auto", data=None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("resnet20_1w1a.safetensors: resnet20_1w1a, model of step 34, 10 classes, ")
    assert re.fullmatch(
        r"binary layers: [\d,]+ bytes for 1,069,056 as float32 \(1/27\.\d\); all else [\d,]+ bytes, weights in 16 bit",
        lines[1],
    )
    assert "on 16 images of noise largest difference of a logit" in lines[2]


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        ((), ("--to", "zip"), "choose one of packed, onnx, pt2"),
        ((), ("--to", "onnx", "--half"), "--half is for packed files"),
        ((), ("--to", "packed", "--out", "absent/net.safetensors"), "make it first"),
        ((), ("--to", "packed", "--out", "deployed/"), "no such folder; make it first"),
        ((), ("--to", "packed", "--weights", "ema"), "holds model only"),
        (("model.numerics=reference",), ("--to", "packed"), "has no room in one bit"),
        (("model.weight_bits=32", "model.activation_bits=32"), ("--to", "packed"), "no binary layer"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    tmp_path: Path, overrides: tuple[str, ...], options: tuple[str, ...], said: str
) -> None:
    write_checkpoint(tmp_path / "run", *overrides)
    kind, out = options[1], tmp_path / options[-1] if "--out" in options else tmp_path
    with pytest.raises(ConfigError, match=said) as caught:
        export(tmp_path / "run", kind, out=out, half="--half" in options, weights="ema" if "ema" in options else "auto")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("kind", ["packed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("onnx", "pt2"))])
def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    write_checkpoint(tmp_path / "run")
    taken = tmp_path / f"resnet20_1w1a{SUFFIX[kind]}"
    taken.mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written \(Is a directory\).*--out") as caught:
        export(tmp_path / "run", kind, out=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"cannot be written \(File name too long\)"):
        export(tmp_path / "run", kind, out=tmp_path / f"{'n' * 300}{SUFFIX[kind]}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["run", taken.name])


def test_the_reader_in_the_document_reads_a_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run")
    done = export(tmp_path / "run", "packed", out=tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    subprocess.run([sys.executable, "-c", code[1] + "\nnp.save('weight.npy', weight)"], cwd=tmp_path, check=True)
    latent = torch.load(done.checkpoint / "model.pt", weights_only=True)["layer1.0.conv1.weight"]
    assert np.array_equal(np.load(tmp_path / "weight.npy"), np.where(latent.numpy() < 0, -1, 1))


def test_a_packed_file_says_what_its_network_is(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", "train.ema=0.9")
    done = export(tmp_path / "run", "packed", out=tmp_path)
    packed = read_packed(done.path)
    assert packed.facts == done.facts
    assert (packed.facts.labels, packed.facts.weights, packed.facts.step) == (LABELS, "ema", 34)
    with safe_open(done.path, framework="np") as file:
        assert "padding is 0 after the sign" in file.metadata()["conventions"]


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    try:
        with pytest.raises(ConfigError, match="false cannot compile"):
            kernels()
        monkeypatch.setenv("CXX", str(tmp_path / "absent"))
        with pytest.raises(ConfigError, match="absent"):
            kernels()
    finally:
        kernels.cache_clear()
    assert not list((tmp_path / "reste").iterdir())


@pytest.mark.slow
def test_pt2_is_the_graph_that_torch_alone_reads(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run")
    done = export(tmp_path / "run", "pt2", out=tmp_path)
    assert done.path.suffix == ".pt2"
    assert done.agreement.largest_difference == 0
    assert torch.export.load(done.path).module()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model.numerics=reference",),
        ("model.name=vgg_small_1w1a", "train.precision=fp64"),
        ("quantizer={weight: recu, activation: shift, scaling: learned}",),
        ("quantizer={weight: standardize, activation: shift, scaling: power_of_two}", "model.numerics=reference"),
    ],
    ids=["reference", "double", "quantized", "quantized reference"],
)
def test_onnx_in_onnxruntime_gives_the_same_classes(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    write_checkpoint(tmp_path / "run", *overrides)
    done = export(tmp_path / "run", "onnx", out=tmp_path)
    found = done.agreement
    assert found.same_top1 >= found.images - 1
    assert found.largest_difference < 0.1 * found.spread
    assert run_onnx(done.path)(torch.zeros(3, 3, 16, 16)).shape == (3, 10)


@pytest.mark.slow
def test_a_trained_network_keeps_its_number_in_every_format(tmp_path: Path, digits: Path) -> None:
    done = reste(
        "train",
        ROOT / "configs" / "quickstart.yaml",
        f"data.root={digits}",
        f"run.dir={tmp_path / 'runs'}",
        "train.epochs=1",
        *SMALL,
        threads=1,
    )
    assert done.returncode == 0, done.stderr
    run = next((tmp_path / "runs").iterdir())
    top1 = json.loads((run / "result.json").read_text())["best"]["top1"]
    for kind, half in (("packed", True), ("onnx", False), ("pt2", False), ("packed", False)):
        found = export(run, kind, out=tmp_path, data=digits, half=half).agreement
        assert found.correct1 is not None
        assert found.images == 355
        # onnxruntime adds in an order of its own, which may turn a sign that is 0 but for rounding.
        turned = 1 if kind == "onnx" else 0
        assert found.same_top1 >= 355 - turned
        assert abs(found.correct1 - top1 * 355 / 100) <= turned + 1e-9
        assert found.largest_difference <= {"onnx": found.spread, "pt2": 0.0}.get(kind, 1e-3 * found.spread * half)
    packed = read_packed(tmp_path / "resnet20_1w1a.safetensors")
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(PackedNet(packed)(images), NativeNet(packed)(images))


@pytest.mark.slow
def test_the_race_against_onnxruntime_runs(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, ROOT / "benchmarks" / "packed.py", "--quick", "--repeats", "1", "--threads", "1"]
    subprocess.run([*command, "--record", record], check=True, env=environment(), capture_output=True)
    (row,) = json.loads(record.read_text())["rows"]
    assert row["ratio"] == pytest.approx(row["onnxruntime_ms"] / row["ours_ms"])
