"""The report of three runs in a real browser that has no network: no console error, light, dark, and on a phone.

`make browser-test` installs Chromium where it is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageStat
from report_runs import write_run

from trainer.report.page import make_report

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
PHONE = 390
"""Pixels of a narrow phone's width."""


def chromium(page: Path, scratch: Path, *options: str) -> tuple[str, list[str]]:
    """Open a page without any network; its document as text, and what it said on the console.

    The browser's own pages (``chrome://``) share the console: a start that takes long makes one of them complain of the
    network. What they say is left out; a page of ours speaks under its own address.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "there is no Chromium: make browser-test installs it"
    # A network namespace of its own has no interface but a loopback that is down.
    alone = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    quiet = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command = [*alone, program, *quiet, f"--user-data-dir={scratch / 'profile'}", "--enable-logging=stderr", *options]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, [line for line in lines if not re.search(r'", source: chrome://\S+ \(\d+\)$', line)]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("runs")
    for number in range(1, 4):
        write_run(parent / f"power{number}", f"estimator.o_end={number}.0")
    path = parent / "report.html"
    path.write_text(make_report(sorted(path for path in parent.iterdir())).html())
    return path


def test_the_console_is_heard_the_network_is_away_and_the_page_forbids_what_it_would_fetch(
    page: Path, tmp_path: Path
) -> None:
    picture = "http://example.org/picture.png"
    bad = (
        f"""<script>console.error("a complaint")</script><img src="{picture}" onerror="console.error('not loaded')">"""
    )
    (tmp_path / "bad.html").write_text(bad)
    _, said = chromium(tmp_path / "bad.html", tmp_path, "--dump-dom")
    assert any("a complaint" in line for line in said)
    assert any("not loaded" in line for line in said)
    (tmp_path / "greedy.html").write_text(page.read_text().replace("</main>", f'<img src="{picture}"></main>'))
    _, said = chromium(tmp_path / "greedy.html", tmp_path, "--dump-dom")
    assert any("Content Security Policy" in line for line in said)


def test_the_report_of_three_runs_opens_offline_without_a_word_on_the_console(page: Path, tmp_path: Path) -> None:
    document, said = chromium(page, tmp_path, "--dump-dom")
    assert said == []
    assert "power1, power2, power3" in document
    assert document.count("<svg") >= 25
    assert page.stat().st_size < 5e6


def test_it_is_light_or_dark_as_the_reader_wants(page: Path, tmp_path: Path) -> None:
    brightness = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        picture = tmp_path / f"{scheme}.png"
        wanted = f"--blink-settings=preferredColorScheme={number}"
        chromium(page, tmp_path, wanted, "--window-size=1280,2000", f"--screenshot={picture}")
        with Image.open(picture) as image:
            brightness[scheme] = ImageStat.Stat(image.convert("L")).median[0]
    assert brightness["light"] > 230
    assert brightness["dark"] < 50


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path) -> None:
    (tmp_path / "phone.html").write_text(
        f"""<body><iframe src="{page.as_uri()}" width="{PHONE}" height="800" style="border:0"></iframe><script>
        onload = () => {{
          const inner = document.querySelector("iframe").contentDocument;
          const sizes = [...inner.querySelectorAll("svg text")].map(word => word.getBoundingClientRect().height);
          document.body.dataset.wide = inner.documentElement.scrollWidth;
          document.body.dataset.smallest = Math.min(...sizes.filter(size => size > 0));
        }}</script></body>"""
    )
    document, said = chromium(tmp_path / "phone.html", tmp_path, "--allow-file-access-from-files", "--dump-dom")
    assert said == []
    found = {name: float(value) for name, value in re.findall(r'data-(wide|smallest)="([\d.]+)"', document)}
    assert found["wide"] == PHONE
    assert found["smallest"] >= 8, "pixels of the smallest letters' line"
