"""A small colour data set without a download: icons of three desktop themes, the class is the icon's category.

Debian's packages oxygen-icon-theme, gnome-icon-theme and tango-icon-theme hold icons of many sizes in nine categories.
Each is laid on white, made 32 pixels large and kept as JPEG. Icons of one name are on one side only, whatever theme or
size they come from, so that nothing is recognised because its twin was seen. On the test side are further sizes and
mirror images.

    apt-get install oxygen-icon-theme gnome-icon-theme tango-icon-theme
    python benchmarks/icons.py data/icons

makes `data/icons/final` (train, val) and `data/icons/choose`, in which val is a part of final's training images: choose
there, report on the other.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

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
PLACES = {"train": ("final/train", "choose/train"), "choose": ("final/train", "choose/val"), "test": ("final/val",)}


def side(name: str) -> str:
    """The split that all icons called `name` go to: a fifth is tested on, 15 % serve to choose."""
    share = hashlib.sha256(name.encode()).digest()[0] / 256
    return "test" if share < 0.2 else "choose" if share < 0.35 else "train"


def rendered(path: Path) -> Image.Image:
    """The icon over white, 32 x 32 RGB."""
    icon = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", icon.size, "white")
    white.alpha_composite(icon)
    return white.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)


def icons_of(folder: Path) -> list[Path]:
    """The icons in one folder; a symbolic link is another name of an icon that has its own."""
    return sorted(path for path in folder.glob("*.png") if not path.is_symlink())


def keep(path: Path, folders: list[Path], prefix: str, mirrored: bool) -> None:
    """Render an icon into each folder; its mirror image, too, if it is tested on: training sees it mirrored as well."""
    image = rendered(path)
    images = {"": image} | ({"_mirrored": ImageOps.mirror(image)} if mirrored else {})
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, each in images.items():
            each.save(folder / f"{prefix}_{path.stem}{suffix}.jpg", quality=95, subsampling=0)


def main(
    root: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("data/icons"),
    icons: Annotated[Path, typer.Option(help="Where the themes are installed.")] = Path("/usr/share/icons"),
) -> None:
    """Render the icons, split them by name, index both data sets."""
    absent = [theme for theme, (folder, _) in SOURCES.items() if not (icons / folder).is_dir()]
    if absent:
        raise SystemExit(f"not installed: {absent}; apt-get install {' '.join(f'{t}-icon-theme' for t in SOURCES)}")
    if root.exists():
        raise SystemExit(f"{root} exists: remove it, or name another folder")
    for theme, (folder, sizes) in SOURCES.items():
        every = (*sizes, *TESTED_TOO[theme])
        for size, category in ((s, c) for s in every for c in CLASSES if s in THINNED.get(c, every)):
            for path in icons_of(icons / folder / f"{size}x{size}" / category):
                where = side(path.stem)
                if where == "test" or size in sizes:
                    keep(path, [root / place / category for place in PLACES[where]], f"{theme}_{size}", where == "test")
    for name in ("final", "choose"):
        typer.echo(f"{root / name}: {prepare_folder(root / name).samples}")


if __name__ == "__main__":
    typer.run(main)
