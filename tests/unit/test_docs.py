"""What the documents quote exists: links, files, commands, options, configuration keys and values, make targets."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from launch.cli import app
from trainer.config import MAY_CHANGE, Config, load_config, schema_keys
from trainer.reference import keys, markdown

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = set(schema_keys(Config))
GROUPS = {key.partition(".")[0] for key in KEYS if "." in key}
PLACEHOLDERS = {"group.key", "key.path", "key"}
FOLDERS = ("reste", "models", "trainer", "launch", "configs", "tests", "benchmarks", "docs", ".ci")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PAIR = re.compile(r"(?<![\w.\-])([a-z_]+(?:\.[a-z_]+)*)=(?!=)")

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)


@functools.cache
def prose(path: Path) -> str:
    """The document without its code blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


@functools.cache
def spans(path: Path) -> list[str]:
    """Inline code, with a line break inside it as a blank and a table's `\\|` as a bar."""
    found = re.findall(r"`([^`]+)`", prose(path))
    return [" ".join(span.replace("\\|", "|").split()) for span in found]


@functools.cache
def lines(path: Path) -> list[str]:
    """Lines of code blocks, continued ones joined, comments cut off."""
    blocks = "\n".join(FENCE.findall(path.read_text(encoding="utf-8"))).replace("\\\n", " ")
    return [re.sub(r"\s+# .*|\s{2,}\(.*", "", line).strip() for line in blocks.splitlines()]


def commands(path: Path, program: str) -> list[list[str]]:
    """The arguments of every quoted call of `program`; the marks of a synopsis are taken off."""
    parts = [part.strip() for text in [*spans(path), *lines(path)] for part in text.split("&&")]
    calls = [part for part in parts if part.startswith(f"{program} ") and "<-" not in part]
    plain = [re.sub(r"(?<!\S)\[([^\]]*)\]", r"\1", call).replace(" ...", "") for call in calls]
    return [shlex.split(call)[1:] for call in plain]


def headings(path: Path) -> set[str]:
    """Anchors of a document's headings, as a forge makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_document
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in headings(file), target


@every_document
def test_every_named_file_of_the_project_exists(path: Path) -> None:
    for span in spans(path):
        if re.fullmatch(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./\-]*", span):
            # The kernels' folder is named by the import law before there is a kernel.
            assert (ROOT / span).exists() or span == "reste/kernels/", span


@every_document
def test_every_named_test_exists(path: Path) -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    for span in spans(path):
        if re.fullmatch(r"test_[a-z0-9_]+", span):
            assert f"def {span}(" in source, span


@every_document
def test_every_quoted_command_line_parses(path: Path) -> None:
    for arguments in commands(path, "reste"):
        command = typer.main.get_command(app)
        words = ["2" if word in ("N", "G") else word for word in arguments]
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, arguments
            command = command.commands[words.pop(0)]
        if not words:
            continue  # a command's name, not a line to type
        try:
            command.make_context(command.name, words)
        except Exception as error:
            pytest.fail(f"reste {' '.join(arguments)}: {error.__class__.__name__}: {error}")


@every_document
def test_every_quoted_configuration_key_exists(path: Path) -> None:
    for text in spans(path) + [line for line in lines(path) if "reste" in line or "-m trainer" in line]:
        for key in PAIR.findall(text):
            assert key in KEYS | PLACEHOLDERS, text
    for span in spans(path):
        if span.partition(".")[0] in GROUPS and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", span):
            assert span in KEYS or Path(span).suffix in {".pt", ".py", ".json", ".yaml", ".jsonl"}, span


@every_document
def test_every_quoted_value_is_accepted(path: Path) -> None:
    whole = [span for span in spans(path) if PAIR.match(span) and (" " not in span or "{" in span)]
    quoted = [word for arguments in commands(path, "reste") for word in arguments if PAIR.match(word)]
    for override in whole + quoted:
        key, _, value = override.partition("=")
        if key not in PLACEHOLDERS and not re.search(r"[A-Z%]|\.\.\.", value):
            load_config(ROOT / "configs" / "quickstart.yaml", [override])


@every_document
def test_every_make_target_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target, *_ in commands(path, "make"):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def test_the_documents_quote_something() -> None:
    assert sum(len(commands(path, "reste")) for path in DOCUMENTS) >= 10
    assert sum(len(commands(path, "make")) for path in DOCUMENTS) >= 5
    assert sum(len(PAIR.findall(span)) for path in DOCUMENTS for span in spans(path)) >= 20


def test_what_may_change_on_a_resume_is_listed() -> None:
    told = spans(ROOT / "docs" / "resume.md")
    text = " ".join(prose(ROOT / "docs" / "resume.md").split())
    for key in MAY_CHANGE:
        assert f"all of `{key[:-1]}`" in text if key.endswith(".") else key in told, key


def test_the_page_of_all_keys_is_what_the_command_prints() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == markdown()
    assert {key.name for key in keys()} >= {"train.batch_size", "batchnorm.sync", "data.synthetic.samples", "stages"}
    assert [key.name for key in keys("batchnorm")] == ["batchnorm.sync", "batchnorm.momentum"]
