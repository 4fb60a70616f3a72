"""A small colour data set without a download: icons of three desktop themes, the class is the icon's category.

Debian's packages oxygen-icon-theme, gnome-icon-theme and tango-icon-theme hold icons of many sizes in nine categories.
Each is laid on white, made 32 pixels large and kept as JPEG. Icons of one name are on one side only, whatever theme or
size they come from, so that nothing is recognised because its twin was seen. On the test side are further sizes and
mirror images.

    apt-get install oxygen-icon-theme gnome-icon-theme tango-icon-theme
    python benchmarks/icons.py data/icons

makes five data sets of these icons in `data/icons`, each with train and val. Whoever compares methods takes `final` and
`choose`, whose val is a part of final's training images. Whoever claims that a recipe is better takes `tune` to find it
and `sealed` to report it: nothing else is ever evaluated on sealed's val. Whoever compares one evaluation of a run with
another takes `shifted`, where each of final's test images is there five times, four of them moved as training moves its
own: less of a difference is chance.
"""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from PIL import Image, ImageOps

from trainer.data.prepare.folder import prepare_folder

CLASSES = ("actions", "apps", "categories", "devices", "emblems", "emotes", "mimetypes", "places", "status")
SOURCES = {
    "oxygen": ("oxygen/base", (32, 48, 64, 128)),
    "gnome": ("gnome", (32, 48, 256)),
    "tango": ("Tango", (32,)),
}
"""Theme -> its folder, and the sizes that are taken from it, in pixels."""
TESTED_TOO = {"oxygen": (22, 256), "gnome": (22, 24), "tango": (22, 24)}
"""Theme -> further sizes, for testing alone: with more images less of a difference is chance."""
THINNED = {"actions": (48,)}
"""Half of all icons are actions: of that category only these sizes are taken."""
PIXELS = 32
SIDES = {"test": 0.2, "choose": 0.35, "sealed": 0.55, "train": 1.0}
"""Side -> where its share of the names ends."""


class Split(NamedTuple):
    """A data set: the sides trained on and the side tested on, there with `more` sizes and mirror images or without.

    `moved` are the places, in pixels to the left and up, in which each test image is there.
    """

    train: frozenset[str]
    val: str
    more: bool = True
    moved: tuple[tuple[int, int], ...] = ((0, 0),)


SPLITS = {
    "final": Split(frozenset({"choose", "sealed", "train"}), "test"),
    "choose": Split(frozenset({"sealed", "train"}), "choose", more=False),
    "sealed": Split(frozenset({"test", "choose", "train"}), "sealed"),
    "tune": Split(frozenset({"test", "train"}), "choose"),
    "shifted": Split(frozenset({"choose", "sealed", "train"}), "test", moved=((0, 0), *product((-3, 3), repeat=2))),
}


def side(name: str) -> str:
    """The side that all icons called `name` are on."""
    share = hashlib.sha256(name.encode()).digest()[0] / 256
    return next(side for side, end in SIDES.items() if share < end)


def rendered(path: Path) -> Image.Image:
    """The icon over white, 32 x 32 RGB."""
    icon = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", icon.size, "white")
    white.alpha_composite(icon)
    return white.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)


def icons_of(folder: Path) -> list[Path]:
    """The icons in one folder; a symbolic link is another name of an icon that has its own."""
    return sorted(path for path in folder.glob("*.png") if not path.is_symlink())


def keep(path: Path, root: Path, category: str, theme: str, size: int) -> None:
    """Put an icon where it belongs; its mirror image, too, where it is tested on: training sees it mirrored as well."""
    image, here = rendered(path), side(path.stem)
    is_usual = size in SOURCES[theme][1]
    for name, split in SPLITS.items():
        if here in split.train and is_usual:
            save(image, root / name / "train" / category, f"{theme}_{size}_{path.stem}")
        elif here == split.val and (is_usual or split.more):
            tested = {"": image} | ({"_mirrored": ImageOps.mirror(image)} if split.more else {})
            for number, place in enumerate(split.moved):
                for what, shown in tested.items():
                    ending = what + (f"_moved_{number}" if number else "")
                    save(moved(shown, *place), root / name / "val" / category, f"{theme}_{size}_{path.stem}{ending}")


def moved(image: Image.Image, left: int, up: int) -> Image.Image:
    """The image so many pixels further left and up; black comes in, as from the margin of a training crop."""
    return image.crop((left, up, left + image.width, up + image.height))


def save(image: Image.Image, folder: Path, name: str) -> None:
    """As JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{name}.jpg", quality=95, subsampling=0)


def main(
    root: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("data/icons"),
    icons: Annotated[Path, typer.Option(help="Where the themes are installed.")] = Path("/usr/share/icons"),
) -> None:
    """Render the icons, split them by name, index the data sets."""
    absent = [theme for theme, (folder, _) in SOURCES.items() if not (icons / folder).is_dir()]
    if absent:
        raise SystemExit(f"not installed: {absent}; apt-get install {' '.join(f'{t}-icon-theme' for t in SOURCES)}")
    if root.exists():
        raise SystemExit(f"{root} exists: remove it, or name another folder")
    for theme, (folder, sizes) in SOURCES.items():
        every = (*sizes, *TESTED_TOO[theme])
        for size, category in ((s, c) for s in every for c in CLASSES if s in THINNED.get(c, every)):
            for path in icons_of(icons / folder / f"{size}x{size}" / category):
                keep(path, root, category, theme, size)
    for name in SPLITS:
        typer.echo(f"{root / name}: {prepare_folder(root / name).samples}")


if __name__ == "__main__":
    typer.run(main)
