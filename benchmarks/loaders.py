"""Our DALI loader against a torchvision DataLoader and against DALI itself, on photographs cut to ImageNet's sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from trainer.data.dali import DaliLoader
from trainer.data.index import Index, load_index
from trainer.data.order import Augment, Plan, TrainOrder
from trainer.data.prepare.folder import prepare_folder
from trainer.pixels import Pixels

SIZE, WORKERS = 224, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_photographs(root: Path, count: int) -> None:
    """JPEGs of about 500 x 375 pixels, quality 90, cut from scikit-learn's two photographs."""
    photographs = load_sample_images().images
    generator = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 2)):
        for number in range(images):
            folder = root / split / str(number % 2)
            folder.mkdir(parents=True, exist_ok=True)
            source = photographs[number % 2]
            height, width = int(generator.integers(330, 420)), int(generator.integers(440, 560))
            top = int(generator.integers(0, source.shape[0] - height + 1))
            left = int(generator.integers(0, source.shape[1] - width + 1))
            cut = Image.fromarray(source[top : top + height, left : left + width])
            cut.save(folder / f"{number:05d}.JPEG", quality=90)
    prepare_folder(root)


def loader_rows(compare: Callable[..., Any], repeats: int, quick: bool) -> Iterator[Any]:
    """Three comparisons over one epoch each, with equal numbers of workers."""
    torch.set_num_threads(1)
    count, batch = (16, 8) if quick else (256, 32)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root, count)
        index = load_index(root, "train")
        order = TrainOrder(index, Augment(SIZE), seed=0, batch_size=batch)
        plans = list(order.plans(0, order.steps_per_epoch))
        loader = DaliLoader(index, root, image_size=SIZE, kind="window", max_batch=batch, workers=WORKERS)
        pixels = Pixels(torch.device("cpu"), precision="fp32", channels_last=True, mean=MEAN, std=STD)

        def ours_uint8() -> None:
            seen = 0
            for found in loader.load(order.plans(0, order.steps_per_epoch)):
                # The other side's workers flip, so that this side must too.
                flipped = torch.where(found.flips[:, None, None, None], found.images.flip(2), found.images)
                seen += len(flipped)
            assert seen == count

        def ours_unflipped() -> None:
            assert sum(len(b.images) for b in loader.load(order.plans(0, order.steps_per_epoch))) == count

        def ours_float() -> None:
            assert sum(len(pixels(b)[1]) for b in loader.load(order.plans(0, order.steps_per_epoch))) == count

        to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
        for name, aim, ours, tail in (
            ("torchvision DataLoader, float", ">= 1.5", ours_float, [to_float]),
            ("torchvision DataLoader, uint8", ">= 1.1", ours_uint8, []),
        ):
            yield compare(name, aim, ours, drain(torchvision_loader(root, batch, tail)), repeats)
        yield compare(
            "bare DALI, same operators", ">= 0.95", ours_unflipped, bare_dali(index, root, plans, batch), repeats
        )
        loader.close()


def torchvision_loader(root: Path, batch: int, tail: list[Any]) -> DataLoader[Any]:
    """The usual loader: ImageFolder, RandomResizedCrop, flip, worker processes that stay."""
    steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor(), *tail]
    data = ImageFolder(str(root / "train"), v2.Compose(steps))
    return DataLoader(data, batch, shuffle=True, num_workers=WORKERS, persistent_workers=True, prefetch_factor=3)


def drain(loader: DataLoader[Any]) -> Callable[[], None]:
    """One epoch."""
    return lambda: [None for _ in loader].clear()


def bare_dali(index: Index, root: Path, plans: list[Plan], batch: int) -> Callable[[], None]:
    """A pipeline of the same operators on the same windows, written as DALI's documentation would."""
    from nvidia.dali import fn, pipeline_def, types

    # Names and windows are made before the clock runs; ours makes them while it runs.
    batches = []
    for plan in plans:
        names = [np.frombuffer(str(root / index.paths[int(i)]).encode(), dtype=np.uint8) for i in plan.ids]
        windows = plan.geometry.windows
        batches.append((names, np.ascontiguousarray(windows[:, :2]), np.ascontiguousarray(windows[:, 2:])))
    feed: list[Any] = []

    def source() -> Any:
        if not feed:
            raise StopIteration
        return feed.pop(0)

    @pipeline_def(batch_size=batch, num_threads=WORKERS, device_id=None, prefetch_queue_depth=2, exec_dynamic=True)
    def pipeline() -> Any:
        names, starts, shapes = fn.external_source(source, num_outputs=3, batch=True)
        encoded = fn.io.file.read(names)
        options = {"axes": [0, 1], "output_type": types.RGB, "adjust_orientation": False}
        image = fn.decoders.image_slice(encoded, start=starts, shape=shapes, **options)
        return fn.resize(image, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=True)

    pipe = pipeline()
    pipe.build()

    def epoch() -> None:
        feed.extend(batches)
        seen = 0
        while True:
            try:
                (images,) = pipe.run()
            except StopIteration:
                pipe.reset()
                break
            seen += len(torch.from_dlpack(images.as_tensor()))
        assert seen == len(index)

    return epoch
