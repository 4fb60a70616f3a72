"""DALI without us: a pipeline that reads, decodes and resizes the same windows, written as its documentation would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.bench.core import Work
from trainer.data.index import Index
from trainer.data.order import Plan


def bare_dali(index: Index, root: Path, plans: list[Plan], *, size: int, workers: int, device_id: int | None) -> Work:
    """One epoch: read, decode the window, resize.

    Args:
        index, root: the split.
        plans: of the epoch. Names and windows are made here, before a clock runs; ours makes them while it runs.
        size: pixels.
        workers: DALI's threads.
        device_id: GPU that decodes and resizes; None for the CPU.
    """
    from nvidia.dali import fn, pipeline_def, types

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

    most = max(len(plan.ids) for plan in plans)

    @pipeline_def(batch_size=most, num_threads=workers, device_id=device_id, prefetch_queue_depth=2, exec_dynamic=True)
    def pipeline() -> Any:
        names, starts, shapes = fn.external_source(source, num_outputs=3, batch=True)
        encoded = fn.io.file.read(names)
        image = fn.decoders.image_slice(
            encoded,
            start=starts,
            shape=shapes,
            axes=[0, 1],
            output_type=types.RGB,
            adjust_orientation=False,
            device="cpu" if device_id is None else "mixed",
        )
        return fn.resize(image, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)

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
