"""`reste bench` runs and prints every row; its figures are nobody's pass or fail."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from image_tree import make_tree
from trainings import ROOT, reste
from typer.testing import CliRunner

from launch import bench
from launch.cli import app
from trainer.bench import estimator, loaders, networks
from trainer.bench.core import Bench, Row, ratio
from trainer.bench.suite import ROWS, check_names, record_folder
from trainer.config import load_config
from trainer.errors import ConfigError, DataError
from trainer.plan.rate import read_record

FIELDS = {"row", "what", "where", "median", "lowest", "highest", "ours", "other", "unit", "better", "must", "aim"}


def measured(tmp_path: Path, *names: str) -> dict[str, list[dict]]:
    """The rows that a quick bench has written, by the file's name; what it prints is looked at."""
    done = reste("bench", *names, "--quick", "--repeats", 1, "--out", tmp_path / "records", timeout_s=280)
    assert done.returncode == 0, done.stderr
    found = {}
    for name in names:
        record = json.loads((tmp_path / "records" / f"{name}.json").read_text())
        assert record["quick"] is True
        assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert {"command", "date", "machine", "code", "precision", "clock", "threads"} <= record.keys()
        found[name] = record["rows"]
        for row in found[name]:
            assert row.keys() >= FIELDS
            assert row["row"] == name
            assert row["what"] in done.stdout
            figures = [row[key] for key in ("lowest", "median", "highest", "ours", "other")]
            assert all(math.isfinite(figure) and figure > 0 for figure in figures)
            assert row["lowest"] <= row["median"] <= row["highest"]
    assert "quick: not a measurement" in done.stdout
    return found


def test_the_estimator_is_measured(tmp_path: Path) -> None:
    rows = measured(tmp_path, "estimator")["estimator"]
    goals = [(row["must"], row["aim"], row["better"]) for row in rows]
    assert goals == [(2.5, 1.5, "lower"), (None, None, "lower"), (None, None, "higher"), (None, None, "higher")]
    reste, copied = rows[0]["ours"], rows[3]
    assert copied["unit"] == "ms/GB"
    # 4,096 elements, of which forward and backward read three numbers and write two.
    assert copied["ours"] == pytest.approx(reste / (4096 * 5 * 4 / 1e9))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (("layer", "step", "memory"), (2, 3, 5)),
        (("int8", "weights"), (1, 1)),
        (("loader",), (3,)),
        (("loop", "trainer", "indicators"), (2, 2, 1)),
        (("input", "buckets"), (2, 1)),
    ],
)
def test_a_benchmark_prints_its_ratios(tmp_path: Path, names: tuple[str, ...], counts: tuple[int, ...]) -> None:
    rows = measured(tmp_path, *names)
    assert tuple(len(rows[name]) for name in names) == counts


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_send_the_bytes_that_the_formula_says(tmp_path: Path) -> None:
    rows = measured(tmp_path, "scaling")["scaling"]
    assert len(rows) == 3
    wire = rows[-1]
    assert wire["unit"] == "MiB"
    # resnet20_1w1a of 10 classes has 0.27 M parameters, of which each of two ranks sends as many bytes as it has.
    assert wire["other"] == pytest.approx(4 * 0.27 * 1e6 / 2**20, rel=0.02)
    assert 1.0 <= wire["median"] < 1.02


def test_every_row_that_one_can_type_exists_and_is_told_by_the_help() -> None:
    assert check_names([]) == list(ROWS)
    assert check_names(["step", "loader", "step"]) == ["step", "loader"]
    help_text = reste("bench", "--help").stdout
    assert all(re.search(rf"\b{name}\b", help_text) for name in ROWS)


@pytest.mark.parametrize("arguments", [["step", "--data", "x"], ["--data", "x"], ["loader", "step", "--data", "x"]])
def test_a_data_set_is_for_the_search_alone(arguments: list[str]) -> None:
    found = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(found.exception, ConfigError)
    assert "write reste bench loader --data ROOT" in str(found.exception)


def test_a_wrong_call_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = reste("bench", "step", "steps", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "there is no row steps: choose of estimator, layer" in done.stderr
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="give another folder by --out"):
        bench.run(["loop"], repeats=1, quick=True, processor=False, out=Path("/dev/null/x"))
    assert not list(tmp_path.iterdir())


def test_a_row_that_fails_leaves_the_others_and_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Bench) -> Iterator[Row]:
        yield ratio("layer", "half", "here", [1.0], [2.0])
        raise ArithmeticError("two and two\nare five")

    def absent(bench: Bench) -> Iterator[Row]:
        raise ConfigError("something is not installed: pip install it")

    monkeypatch.setattr(
        estimator, "estimator_rows", lambda _: iter([ratio("estimator", "whole", "here", [2.0], [3.0])])
    )
    monkeypatch.setattr(estimator, "layer_rows", broken)
    monkeypatch.setattr(loaders, "loader_rows", absent)
    with pytest.raises(ConfigError) as caught:
        bench.run(["layer", "loader", "estimator"], repeats=1, quick=True, processor=False, out=tmp_path)
    assert str(caught.value) == (
        "not measured: layer (ArithmeticError: two and two); loader (something is not installed: pip install it); "
        "mend that, and run: reste bench layer loader"
    )
    out, err = capsys.readouterr()
    assert "whole" in out
    assert 'raise ArithmeticError("two and two' in err, "where a fault of ours lies"
    assert [path.name for path in tmp_path.iterdir()] == ["estimator.json"]


def test_the_record_of_steps_is_one_of_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "step_rows", lambda _: iter([ratio("step", "binary", "here", [500.0], [600.0])]))
    bench.run(["step"], repeats=1, quick=True, processor=False, out=tmp_path)
    found = read_record(tmp_path / "step.json")
    # Two images in half a second.
    assert (found.model, found.image_size, found.points[0].images, found.points[0].images_per_s) == (
        "resnet20_1w1a", 32, 2, 4.0,
    )  # fmt: skip
    assert load_config(None, [f"train.precision={found.precision}"]), "a precision that a configuration may ask for"


def test_records_go_beside_the_projects_own_where_there_are_any(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"records/\d{4}-\d\d-\d\d_[a-z0-9-]+", str(record_folder()))
    monkeypatch.chdir(ROOT)
    assert re.fullmatch(r"benchmarks/records/\d{4}-\d\d-\d\d_[a-z0-9-]+", str(record_folder()))


def test_the_search_writes_the_best_settings_beneath_every_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_tree(tmp_path / "data", train=8, val=2, classes=2)
    from trainer.data.prepare.folder import prepare_folder

    prepare_folder(root)
    site = tmp_path / "config" / "site.yaml"
    monkeypatch.setenv("RESTE_SITE", str(site))
    options = {"repeats": 1, "seconds": 0.02, "image_size": 32}
    bench.sweep(root, **options, out=tmp_path / "quick", keep=False)
    assert not site.exists()
    bench.sweep(root, **options, out=None, keep=True)
    found = json.loads((tmp_path / "quick" / "sweep.json").read_text())
    assert {tuple(tried["values"]) for tried in found["decoding"]} == {("data.workers",)}
    assert {tried["values"]["data.prefetch"] for tried in found["waiting"]} == {1, 2, 3, 4, 6, 8}
    assert str(root) in site.read_text().splitlines()[1]
    data = load_config(None).data
    printed = capsys.readouterr().out
    assert f"data.workers={data.workers}, data.prefetch={data.prefetch}: written to {site}" in printed


def test_the_search_needs_a_place_to_write_and_prepared_data_before_it_measures(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DataError, match="nothing-here"):
        bench.sweep(tmp_path / "nothing-here", repeats=1, seconds=60, out=None, keep=False)
    monkeypatch.setenv("RESTE_SITE", "")
    with pytest.raises(ConfigError, match="RESTE_SITE is empty"):
        bench.sweep(tmp_path, repeats=1, seconds=60, out=None, keep=True)


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_are_measured_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["estimator", "layer", "step", "memory", "loop", "input"]
    bench.run(names, repeats=1, quick=True, processor=False, out=tmp_path)
    for name in names:
        assert json.loads((tmp_path / f"{name}.json").read_text())["device"] == "cuda"
    with pytest.raises(ConfigError, match="--processor"):
        bench.run(["step"], repeats=1, quick=True, processor=True, out=tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_search_on_a_gpu_finds_a_share_of_its_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali")
    from trainer.data.prepare.folder import prepare_folder

    root = make_tree(tmp_path / "data", train=8, val=2, classes=2)
    prepare_folder(root)
    monkeypatch.setenv("RESTE_SITE", str(tmp_path / "site.yaml"))
    bench.sweep(root, repeats=1, seconds=0.02, image_size=32, out=None, keep=True)
    assert load_config(None).data.decode_share is not None
