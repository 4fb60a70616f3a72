"""The site file: beneath every configuration, above the defaults, and nothing in it that changes what is learnt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trainings import QUICK, reste
from typer.testing import CliRunner

from launch.cli import app
from trainer.config import MAY_CHANGE, Config, config_digest, load_config, schema_keys
from trainer.errors import ConfigError
from trainer.resume import differences
from trainer.site import KEYS, read_site, site_file, write_site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a site file that nothing stands in yet."""
    path = tmp_path / "sites" / "here.yaml"
    monkeypatch.setenv("RESTE_SITE", str(path))
    return path


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_value_is_the_default_beneath_the_site_beneath_the_configuration_beneath_the_command_line(
    site: Path, tmp_path: Path
) -> None:
    config = put(tmp_path / "a.yaml", "data: {prefetch: 7}\n")
    bare = load_config(config)
    put(site, "data: {workers: 5, prefetch: 6, dont_use_mmap: true}\n")
    over = load_config(config, ["data.dont_use_mmap=false"])
    assert bare.data.workers != 5
    assert (over.data.workers, over.data.prefetch, over.data.dont_use_mmap) == (5, 7, False)
    assert load_config(None).data.prefetch == 6


def test_an_error_names_the_line_of_the_site_file(site: Path) -> None:
    put(site, "# mine\ndata:\n  workers: many\n")
    with pytest.raises(ConfigError, match=rf"{site}:3: data\.workers: .*got 'many'"):
        load_config(None, ["data.prefetch=2"])


@pytest.mark.parametrize(
    "text",
    ["seed: 3", "data: {image_size: 64}", "optim: {lr: 0.5}", "data: 5", "data: {workers: {a: 1}}", "nonsense: 1"],
)
def test_what_is_not_the_machines_to_say_is_refused_in_one_line(site: Path, text: str) -> None:
    put(site, text)
    with pytest.raises(
        ConfigError, match=r"here\.yaml:1: .* is not for the site file, which may set data\.workers"
    ) as it:
        load_config(QUICK)
    assert "\n" not in str(it.value)


@pytest.mark.parametrize("content", ["[1, 2]", "data: [1", "a: &x 1\nb: *x"])
def test_a_site_file_that_cannot_be_read_is_named(site: Path, content: str) -> None:
    put(site, content)
    with pytest.raises(ConfigError, match=r"here\.yaml:1"):
        load_config(QUICK)


def test_all_that_a_site_file_may_hold_exists_and_may_differ_between_two_starts_of_a_run() -> None:
    assert set(KEYS) <= set(schema_keys(Config))
    assert all(key.startswith(MAY_CHANGE) for key in KEYS)


def test_a_run_goes_on_where_the_site_file_is_another(site: Path, tmp_path: Path) -> None:
    # What a checkpoint keeps is the resolved configuration, which the next start compares with its own.
    config = put(tmp_path / "a.yaml", "data: {workers: 3}\nseed: 4\n")
    before = load_config(config)
    put(site, "data: {workers: 6, prefetch: 9, decode_share: 0.5, dont_use_mmap: true}\n")
    now = load_config(config)
    saved = load_config(put(tmp_path / "saved.yaml", before.to_yaml()))
    assert saved == before
    assert differences(saved, now) == []
    assert config_digest(saved) == config_digest(now) != config_digest(load_config(config, ["seed=5"]))


def test_the_place_is_the_variables_or_the_users_folder_of_settings(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RESTE_SITE", "~/mine.yaml")
    assert site_file() == Path.home() / "mine.yaml"
    monkeypatch.setenv("RESTE_SITE", "")
    assert site_file() is None
    monkeypatch.delenv("RESTE_SITE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert site_file() == tmp_path / "reste" / "site.yaml"
    for elsewhere in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", elsewhere)
        assert site_file() == Path.home() / ".config" / "reste" / "site.yaml"


def test_tests_read_no_site_file_of_their_user() -> None:
    assert os.environ["RESTE_SITE"] == ""
    assert read_site().values == {}


def test_writing_keeps_what_stood_there_and_says_where_it_comes_from(site: Path) -> None:
    put(site, "data: {dont_use_mmap: true, workers: 1}\n")
    assert write_site({"data.workers": 6, "data.prefetch": 2}, "measured\non this machine") == site
    assert site.read_text().startswith("# measured\n# on this machine\ndata:\n  workers: 6\n")
    data = load_config(None).data
    assert (data.workers, data.prefetch, data.dont_use_mmap) == (6, 2, True)
    assert [path.name for path in site.parent.iterdir()] == ["here.yaml"]


def test_a_site_file_that_cannot_be_written_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = put(tmp_path / "file", "")
    for place in (blocked / "site.yaml", ""):
        monkeypatch.setenv("RESTE_SITE", str(place))
        with pytest.raises(ConfigError, match="RESTE_SITE") as caught:
            write_site({"data.workers": 2}, "")
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    broken = put(tmp_path / "site.yaml", "seed: 1\n")
    monkeypatch.setenv("RESTE_SITE", str(broken))
    with pytest.raises(ConfigError, match="seed is not for the site file"):
        write_site({"data.workers": 2}, "")
    assert broken.read_text() == "seed: 1\n"


def test_the_plan_says_what_of_the_site_file_holds(site: Path) -> None:
    put(site, "data:\n  workers: 5\n  prefetch: 6\n")
    arguments = ["train", str(QUICK), "--dry-run"]
    printed = CliRunner(env={"COLUMNS": "250"}).invoke(app, arguments).output
    # The quickstart sets its own number of workers.
    assert f"data.prefetch=6 ({site}:3)" in printed
    assert "data.workers=5" not in printed
    printed = CliRunner(env={"COLUMNS": "250"}).invoke(app, [*arguments, "data.prefetch=1"]).output
    assert f"nothing of {site}" in printed
    site.unlink()
    assert "site file" not in CliRunner().invoke(app, arguments).output


def test_the_command_line_answers_a_bad_site_file_in_one_line(tmp_path: Path, monkeypatch) -> None:
    bad = put(tmp_path / "bad.yaml", "seed: 1")
    monkeypatch.setattr("trainings.environment", lambda: dict(os.environ) | {"RESTE_SITE": str(bad)})
    done = reste("train", QUICK, "--dry-run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"error: {bad}:1: seed is not for the site file" in done.stderr
