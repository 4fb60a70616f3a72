"""The screen of `reste study toy`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch.study import spread
from trainer.errors import EXIT_FINISHED, ConfigError
from trainer.study.figure import draw_toy
from trainer.study.toy import SLOPES, STARTS, descents, write_table


def toy(out: Path, *, seed: int, seeds: int, steps: int, rate: float) -> int:
    """Descend from every start with every slope, write table and figure; returns the exit code of `reste study`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; name a folder") from None
    found = list(descents(seed, seeds=seeds, steps=steps, rate=rate))
    table_file, figure = out / "toy.csv", out / "toy.png"
    write_table(found, table_file)
    draw_toy(found, figure)
    console = Console(highlight=False, soft_wrap=True)
    table = Table("start", "slope", "loss at the end", "largest rise in a step", "where it ends")
    for start in STARTS:
        for slope in SLOPES:
            group = [one for one in found if (one.start, one.slope) == (start, slope)]
            ends = Counter(one.end for one in group)
            told = ", ".join(f"{number} {end}" for end, number in sorted(ends.items()))
            losses = spread([float(one.losses[-1]) for one in group], ".3g")
            table.add_row(start, slope, losses, f"{max(one.rise for one in group):.2g}", told)
    console.print(table)
    console.print(f"figure: {figure}\ntable: {table_file}", markup=False)
    return EXIT_FINISHED
