"""The page: everything about some runs in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trainer.durable import replace_file
from trainer.report import latent, panels, pictures, tables
from trainer.report.ink import DARK, LIGHT, RUNS, png, svg
from trainer.report.layers import LayerFacts, look_into
from trainer.report.paper import Picture, entitled
from trainer.report.reading import RunReading, read_runs

TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class Section:
    """Pictures that belong together.

    Attributes:
        title: heading.
        pictures: in their order.
        note: what is missing, and why.
        run: the number of the run it is about, None for all.
    """

    title: str
    pictures: list[Picture]
    note: str | None = None
    run: int | None = None


@dataclass(frozen=True)
class Report:
    """What is told of some runs."""

    runs: list[RunReading]
    sections: list[Section]

    def html(self) -> str:
        """The page, with everything in it."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        configuration = tables.configuration(self.runs)
        return environment.get_template(TEMPLATE).render(
            title=", ".join(run.label for run in self.runs),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            runs=self.runs,
            colours=[RUNS[number % len(RUNS)] for number in range(len(self.runs))],
            trained=list(dict.fromkeys(map(tables.network_and_data, self.runs))),
            outcomes=tables.outcomes(self.runs),
            published=tables.published(self.runs),
            differing=[row for row in configuration if row.differs],
            configuration=configuration,
            machines=tables.machines(self.runs),
            sections=self.sections,
            ink=_ink,
            light=LIGHT,
            dark=DARK,
        )

    def save_pngs(self, folder: Path) -> int:
        """Write every picture as a PNG with its title and the runs' names; returns how many.

        Raises:
            OSError: the folder cannot be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        drawn = [(section, picture) for section in self.sections for picture in section.pictures]
        for section, picture in drawn:
            stem = picture.name if section.run is None else f"{picture.name}_{section.run + 1}"
            numbers = range(len(self.runs)) if section.run is None else [section.run]
            with entitled(picture, {self.runs[number].label: number for number in numbers}) as figure:
                replace_file(folder / f"{stem}.png", png(figure))
        return len(drawn)


def make_report(folders: Sequence[Path]) -> Report:
    """Read the runs and draw.

    Raises:
        DataError: one is no run folder or its journal is damaged.
        ConfigError: one is named twice.
    """
    return draw(read_runs(folders))


def draw(runs: Sequence[RunReading]) -> Report:
    """Draw runs that have been read, and what their checkpoints tell."""
    common = [
        Section("Training", pictures.courses(panels.COURSES, runs)),
        Section(
            "Schedules and the two sides of the equilibrium",
            [
                *pictures.courses(panels.SCHEDULES, runs),
                *pictures.balance(runs),
                *pictures.courses(panels.INDICATORS, runs),
            ],
        ),
        Section("Speed", pictures.courses(panels.SPEED, runs)),
    ]
    own = [_own(run, number, look_into(run.folder)) for number, run in enumerate(runs)]
    return Report(list(runs), [section for section in [*common, *own] if section.pictures or section.note])


def _own(run: RunReading, number: int, facts: LayerFacts) -> Section:
    drawn = [*pictures.by_layer(run, number), *latent.draw(facts, number)]
    note = f"Not everything can be shown: {facts.missing}." if facts.missing else None
    return Section(f"Layers of {run.label}", drawn, note, number)


def _ink(picture: Picture, run: int | None) -> Markup:
    """The SVG; what matplotlib writes is escaped already."""
    return Markup(svg(picture.figure, picture.name if run is None else f"{picture.name}-{run}"))
