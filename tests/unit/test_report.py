"""Reports of runs written by hand: what the page says, what it draws, what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import write_run
from typer.testing import CliRunner

from launch.cli import app
from trainer import checkpoint, checkpoints
from trainer.errors import ConfigError, DataError
from trainer.report import COMPARISON, keep_report
from trainer.report.ink import DARK, LIGHT, png
from trainer.report.layers import look_into
from trainer.report.page import Report, draw, make_report
from trainer.report.panels import COURSES
from trainer.report.paper import entitled
from trainer.report.pictures import courses, shorten
from trainer.report.reading import labels, read_runs
from trainer.tracking.sync import ARTIFACTS

FETCHING = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}
KINDS = ("estimating_error", "gradient_instability")


class Page(HTMLParser):
    """A page's tables, attributes that fetch, tags and drawings, read by the library's parser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.marked: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self._cell = False
        self._mark = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in FETCHING]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell, self._mark = True, ("class", "marked") in attrs

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            if self._mark:
                self.marked.append(self.tables[-1][-1][-1])
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data

    def row(self, table: int, name: str) -> list[str]:
        return next(row[1:] for row in self.tables[table] if row[0] == name)


def words(*folders: Path) -> str:
    """The page without its pictures, which take seconds."""
    return Report(read_runs(folders), []).html()


def forget_indicators(run: Path) -> None:
    """As if the run had been made with log.indicators_every=0; their pictures take longest."""
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(line for line in lines if "indicator/" not in line))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs that differ in their last power and in one other key."""
    parent = tmp_path_factory.mktemp("runs")
    write_run(parent / "a", "estimator.o_end=1.0")
    write_run(parent / "b", "estimator.o_end=2.0", top1=(50.0, 60.0, 90.25))
    write_run(parent / "c", "estimator.o_end=3.0", "optim.lr=0.05", kept=1)
    return [parent / name for name in "abc"]


@pytest.fixture(scope="module")
def text(runs: list[Path]) -> str:
    return make_report(runs).html()


def test_the_page_of_three_runs_fetches_nothing_runs_nothing_and_is_small(text: str) -> None:
    page = Page(text)
    assert all(target.startswith(("#", "data:,")) for target in page.fetched)
    assert not {"script", "iframe", "object", "embed", "img", "base"} & set(page.tags)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert len(text) < 5e6


def test_ids_are_unique_and_every_reference_is_to_one_of_them(text: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'url\(#([^)"]*)\)', text) + re.findall(r'href="#([^"]*)"', text)
    assert wanted
    assert set(wanted) <= set(ids)


def test_every_colour_in_a_drawing_is_a_variable_that_has_a_light_and_a_dark_value(text: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", drawings)
    assert set(re.findall(r"var\(--(\w+)\)", drawings)) == {"text", "muted", "grid", "run1", "run2", "run3"}
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_rounding_places_in_a_drawing_leaves_its_words_alone(text: str) -> None:
    assert ">0.025<" in text, "a tick of the learning rate"


def test_outcomes_are_those_of_journal_and_result(text: str) -> None:
    page = Page(text)
    assert page.tables[0][0] == ["", "a", "b", "c"]
    assert page.row(0, "top-1, final %") == ["70.00", "90.25", "70.00"]
    assert page.row(0, "top-1, best %") == ["80.00", "90.25", "80.00"]
    assert page.row(0, "at step") == ["40", "60", "40"]
    assert page.row(0, "images seen") == ["3,840"] * 3
    assert page.row(0, "waiting for data %") == ["25.0"] * 3
    assert page.row(0, "time")[0] == "1 min 30 s"
    assert page.marked[:2] == ["90.25", "90.25"], "the best of each row; equal ones of all runs are not marked"


def test_the_configuration_shows_what_differs_and_marks_where(text: str) -> None:
    differing, every = Page(text).tables[1], Page(text).tables[2]
    assert differing[1:] == [["estimator.o_end", "1.0", "2.0", "3.0"], ["optim.lr", "0.1", "0.1", "0.05"]]
    assert Page(text).marked[2:5] == ["2.0", "3.0", "0.05"]
    assert ["run.name", "a", "b", "c"] in every
    assert len(every) > 80


def test_one_run_is_compared_with_the_defaults(runs: list[Path]) -> None:
    text = words(runs[0])
    told = [row[0] for row in Page(text).tables[0][1:]]
    assert "model.name" in told
    assert "optim.momentum" not in told
    assert "What this run sets otherwise" in text


def test_weights_are_counted_by_size_and_turned_signs_by_layer(runs: list[Path]) -> None:
    facts = look_into(runs[0])
    assert facts.weights is not None
    folder = checkpoints.steps(runs[0] / "checkpoints")[-1]
    stored = torch.load(folder / "model.pt", weights_only=True)
    assert list(facts.weights.counts.values()) == [v.numel() for k, v in stored.items() if ".conv" in k]
    sizes = np.sort(np.concatenate([v.abs().numpy().ravel() for k, v in stored.items() if ".conv" in k]))
    below = np.searchsorted(sizes, facts.weights.edges[1:-1]) / len(sizes)
    np.testing.assert_allclose(np.cumsum(facts.weights.total)[:-1], below, atol=1e-6)
    assert facts.weights.total.sum() == pytest.approx(1)
    assert (facts.weights.knee, facts.weights.threshold) == (0.1, 1.5)
    [flips] = facts.flips
    first, *others = flips.shares.values()
    assert (flips.before, flips.after) == (40, 60)
    assert first == pytest.approx(100 * 144 / (16 * 16 * 9))
    assert not any(others)


def test_what_a_run_does_not_keep_is_said(runs: list[Path]) -> None:
    # Its best checkpoint is kept beside the last.
    assert len(look_into(runs[2]).flips) == 1
    assert "keeps no checkpoint" in str(look_into(runs[0] / "checkpoints").missing)


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    newest = checkpoints.steps(tmp_path / "run" / "checkpoints")[-1]
    (newest / "model.pt").write_bytes(b"spoiled")
    facts = look_into(tmp_path / "run")
    assert facts.weights is not None
    assert facts.weights.step == 40 == checkpoint.step_of(newest) - 20
    assert f"{newest.name} cannot be used" in str(facts.missing)


def test_a_run_keeps_its_page_without_indicators_and_checkpoints_and_a_failure_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path / "run", kept=0)
    forget_indicators(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    for name in ("result.json", "status.json", "manifest.json"):
        (tmp_path / "run" / name).unlink()
    keep_report(tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text()
    assert "Estimating error" not in text
    assert "keeps no checkpoint" in text
    assert "Top-1 accuracy" in text
    assert not caplog.text
    keep_report(tmp_path)
    assert "try `reste report" in caplog.text
    assert "Traceback" not in caplog.text


def test_names_cannot_break_out_of_the_page_and_passwords_do_not_enter_it(tmp_path: Path) -> None:
    write_run(tmp_path / "made", "tracking.uri=http://anna:verysecret@tracker:5000")
    stored = tmp_path / "made" / "config.yaml"
    stored.write_text(stored.read_text().replace("***@", "anna:verysecret@"))  # as somebody may have done by hand
    assert "verysecret" in stored.read_text()
    strange = (tmp_path / "made").rename(tmp_path / "<script>$x$&")
    text = words(strange)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "verysecret" not in text
    assert "http://***@tracker:5000" in text
    picture = courses(COURSES[:1], read_runs([strange]))[0]
    with entitled(picture, {"<script>$x$&": 0}) as figure:
        assert png(figure).startswith(b"\x89PNG")


def test_published_results_stand_beside_a_run_on_their_data(tmp_path: Path) -> None:
    expect = "data.expect={train: 50000, val: 10000, classes: 10}"
    write_run(tmp_path / "run", expect, "train.epochs=1000", "train.batch_size=256")
    table = Page(words(tmp_path / "run")).tables[0]
    assert table[1] == [
        "the paper, the same schedule",
        "resnet20_1w1a, 1W1A",
        "1000 epochs of 256",
        "86.75",
        "–",  # noqa: RUF001
    ]
    assert table[2] == ["run", "resnet20_1w1a, 1W1A", "1000 epochs of 256", "70.00", "99.50"]


def test_long_courses_become_means_and_gaps_stay_gaps() -> None:
    steps, values = list(range(1000)), [float(number) for number in range(1000)]
    short = shorten((steps, values), 100)
    assert short[0] == short[1] == [4.5 + 10 * number for number in range(100)]
    assert shorten(([1, 2], [float("inf"), 3.0]), 100)[1] == pytest.approx([float("nan"), 3.0], nan_ok=True)


def test_labels_are_the_shortest_ends_that_differ() -> None:
    assert labels([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    assert labels([Path("/x/a"), Path("/x/b")]) == ["a", "b"]


def test_the_command_writes_page_and_pictures_where_it_is_told(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out[s]"
    write_run(run)
    forget_indicators(run)
    before = set(run.iterdir())
    out.mkdir()
    arguments = ["report", str(run), "--out", str(out / "page.html"), "--png", str(out / "png")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["page.html", "png"]
    assert f"page: {out}/page.html (" in done.output, "the name as it is"
    assert f" in {out}/png\n" in done.output
    pictures = {path.stem: path.read_bytes() for path in (out / "png").iterdir()}
    assert {"accuracy", "loss", "power", "weights_1", "weights_by_layer_1", "flips_1"} <= pictures.keys()
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    assert set(run.iterdir()) == before


def test_a_comparison_leaves_the_pages_of_its_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for run in folders:
        write_run(run, kept=0)
        forget_indicators(run)
        (run / "report.html").write_text("its own page")
        (run / "config.yaml").write_text("model: {name: resnet20_1w1a}")  # so that there is no store to be asked
    monkeypatch.chdir(folders[0])
    done = CliRunner().invoke(app, ["report", ".", "../b", "--log"])
    assert "page: comparison.html" in done.output
    assert isinstance(done.exception, DataError)
    for run in folders:
        assert (run / "report.html").read_text() == "its own page"
        assert "Top-1 accuracy" in (run / COMPARISON).read_text()
    assert COMPARISON in ARTIFACTS, "which MLflow keeps"


def test_mistakes_end_in_one_line_and_leave_nothing(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"journal.jsonl is missing: name the folder of a run"):
        read_runs([tmp_path])
    with pytest.raises(ConfigError, match="named twice"):
        read_runs([runs[0], runs[0] / ".." / runs[0].name])
    done = CliRunner().invoke(app, ["report", str(runs[0]), "--out", str(tmp_path / "no" / "page.html")])
    assert isinstance(done.exception, ConfigError)
    assert "there is no folder" in str(done.exception)
    done = CliRunner().invoke(app, ["report", str(tmp_path / "typo")])
    assert isinstance(done.exception, DataError)
    assert "name the folder of a run" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_long_run_of_a_deep_network_is_as_small_a_page(runs: list[Path]) -> None:
    [read] = read_runs(runs[2:])
    steps, noise = list(range(10_000)), np.random.default_rng(0).uniform(1, 2, (3, 10_000)).tolist()
    deep = {f"indicator/{kind}/layer{n}": (steps, noise[n % 3]) for kind in KINDS for n in range(20)}
    long = {name: (steps, noise[0]) for name in read.series if "layer" not in name}
    page = draw([replace(read, series=long | deep)]).html()
    assert page.count("<svg") >= 15
    assert len(page) < 5e6 / 3, "three of them fit into 5 MB"
