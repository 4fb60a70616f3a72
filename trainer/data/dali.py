"""Pixels by DALI: told which files, windows and sizes, it reads and decodes them in its own threads.

Python hands over names, not bytes; of images in tar files it hands over views of memory that a pool of readers
has filled, which DALI does not copy. Antialiased linear resize and no EXIF rotation, so that the pixels are
those of the Pillow loader: both libraries decode JPEG with libjpeg-turbo on the CPU.

A GPU resizes where it decodes. On a CPU `torch` does, in less time than DALI's operator there and within two of
255 of Pillow; DALI's pixels differ from theirs by rounding, and in the outermost line of a shrunken image by up to
an eighth of the contrast there, because DALI repeats the edge where Pillow leaves out what lies beyond it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.data.background import Background
from trainer.data.batch import Batch, empty_batch, make_batch
from trainer.data.dali_inputs import Source, create_feed
from trainer.data.faults import UnreadableError, file_fault, one_line
from trainer.data.geometry import GeometryKind
from trainer.data.index import Index
from trainer.data.order import Plan
from trainer.data.pillow import open_rgb
from trainer.data.resize import Resizer
from trainer.data.storage import Files, Shards, open_storage
from trainer.errors import ConfigError, DataError


class DaliLoader:
    """Decode with DALI, on the CPU or on a GPU; crop and antialiased bilinear resize.

    One pipeline serves every call of `load` and images of every size; it is built at the first. A new iterator ends
    the one before.

    Args:
        index: the split.
        root: data root, where the index's samples are.
        image_size: side of the largest images of the plans; each plan has its own.
        kind: kind of the plans' geometry.
        max_batch: largest batch of a plan.
        workers: DALI's threads; on a CPU as many others resize.
        prefetch: finished batches kept ready, beside those in the pipeline.
        rank: named in errors.
        storage: reads the samples; by default what the index tells of.
        device_id: GPU that decodes and resizes; None for the CPU.
        dont_use_mmap: read files instead of mapping them, for network file systems.
        decode_share: share of the JPEGs that a GPU's decoder unit gets; None: DALI's own choice. Nothing on a CPU.
        antialias: off only to show what that does.

    Raises:
        ConfigError: DALI is not installed.
    """

    def __init__(
        self,
        index: Index,
        root: Path,
        *,
        image_size: int,
        kind: GeometryKind,
        max_batch: int,
        workers: int = 2,
        prefetch: int = 2,
        rank: int = 0,
        storage: Files | Shards | None = None,
        device_id: int | None = None,
        dont_use_mmap: bool = False,
        decode_share: float | None = None,
        antialias: bool = True,
    ) -> None:
        _import_dali()
        self._recipe = _Recipe(kind, max(workers, 1), device_id, dont_use_mmap, decode_share, antialias)
        self._index = index
        self._storage = storage or open_storage(index, root)
        self._image_size = image_size
        self._max_batch = max(max_batch, 1)
        self._prefetch = prefetch
        self._rank = rank
        self._feed = create_feed(index, self._storage, fault=self._fault)
        self._source = Source(self._feed, kind, resizes=device_id is not None)
        self._resizer = Resizer(max(workers, 1), antialias=antialias)
        self._pipeline: Any = None
        # A stream that was dropped may still be winding up in its thread when the next one starts.
        self._in_use = threading.Lock()
        self._current: weakref.ref[Background[Batch]] | None = None

    def load(self, plans: Iterable[Plan]) -> Iterator[Batch]:
        """Batches of `plans`, in order, made ahead from this call on."""
        self._end_current()
        batches = Background(self._produce(plans), depth=self._prefetch, name="dali-loader")
        self._current = weakref.ref(batches)
        return batches if self._recipe.device_id is None else _for_current_stream(batches)

    def close(self) -> None:
        """Stop the threads and free the pipeline; the loader cannot be used afterwards."""
        self._end_current()
        with self._in_use:
            self._pipeline = None
        self._resizer.close()
        self._feed.close()
        self._storage.close()

    def _end_current(self) -> None:
        batches = self._current() if self._current else None
        if batches is not None:
            batches.close()

    def _produce(self, plans: Iterable[Plan]) -> Iterator[Batch]:
        if self._recipe.device_id is not None:
            # A thread begins at GPU 0, and would take memory there for every rank.
            torch.cuda.set_device(self._recipe.device_id)
        with self._in_use:
            if self._pipeline is None:
                self._pipeline = self._recipe.build(self._source, self._max_batch, depth=2)
            self._source.begin(self._checked(plans))
            try:
                yield from self._batches()
            finally:
                self._rewind()

    def _checked(self, plans: Iterable[Plan]) -> Iterator[Plan]:
        for plan in plans:
            assert plan.geometry.kind == self._recipe.kind, "a plan for another loader"
            assert plan.geometry.size <= self._image_size, "a plan larger than image_size"
            yield plan

    def _batches(self) -> Iterator[Batch]:
        source = self._source
        while (output := self._run()) is not None:
            yield from map(empty_batch, source.take_empty())
            if self._recipe.device_id is None:
                images = self._resizer([torch.from_dlpack(image) for image in output], source.head.geometry)
            else:
                images = self._recipe.to_torch(output)
            yield make_batch(source.take(), images)
        yield from map(empty_batch, source.take_empty())
        if source.error is not None:
            raise source.error

    def _run(self) -> Any:
        """The next output of the pipeline, or None at the end of the plans."""
        try:
            return self._pipeline.run()[0]
        except StopIteration:
            return None
        except Exception as error:  # DALI raises several kinds; its pipeline is unusable after each
            self._pipeline = None
            raise self._name_culprit(error) from error

    def _rewind(self) -> None:
        """Let what is still in the pipeline run out, so that it can be begun again."""
        self._source.begin(())
        while self._pipeline is not None:
            try:
                self._pipeline.run()
            except StopIteration:
                self._pipeline.reset()
                return
            except Exception:  # a bad file in a batch that nobody wants any more
                self._pipeline = None

    def _name_culprit(self, error: Exception) -> DataError:
        """Run the samples in flight one at a time until one fails."""
        pending = self._source.under_way
        alone = Source(self._feed, self._recipe.kind, resizes=self._recipe.resizes, one_by_one=True)
        alone.begin(pending)
        pipeline = self._recipe.build(alone, 1, depth=1)
        for sample in (int(sample) for plan in pending for sample in plan.ids):
            try:
                pipeline.run()
            except Exception as cause:
                if isinstance(alone.error, DataError):
                    return alone.error
                return self._fault(sample, self._reason(sample, cause))
        return UnreadableError(f"DALI failed on rank {self._rank}, on no single file: {_gist(error)}; try again")

    def _reason(self, sample: int, cause: Exception) -> str:
        try:
            open_rgb(self._index, self._storage, sample)
        except Exception as second:
            return f"{_gist(cause)} (DALI); {one_line(second)} (Pillow)"
        return f"{_gist(cause)} (DALI)"

    def _fault(self, sample: int, reason: str) -> DataError:
        return file_fault(self._index, self._storage, sample, rank=self._rank, reason=reason)


@dataclass(frozen=True)
class _Recipe:
    kind: GeometryKind
    workers: int
    device_id: int | None
    dont_use_mmap: bool
    decode_share: float | None
    antialias: bool

    def build(self, source: Source, max_batch: int, *, depth: int) -> Any:
        """A pipeline of batches (B, S, S, 3) on a GPU, of B decoded images or windows of their own sizes on a CPU."""
        dali = _import_dali()
        pipeline = dali.Pipeline(
            batch_size=max_batch,
            num_threads=self.workers,
            device_id=self.device_id,
            prefetch_queue_depth=depth,
            exec_dynamic=True,
        )
        with pipeline:
            pipeline.set_outputs(self._window(source) if self.kind == "window" else self._resize(source))
        pipeline.build()
        return pipeline

    @property
    def resizes(self) -> bool:
        """DALI resizes, not only decodes."""
        return self.device_id is not None

    def _window(self, source: Source) -> Any:
        dali = _import_dali()
        types = dali.types
        # Sizes that DALI resizes to are floating point, windows that it cuts are not.
        encoded, size, start, shape, *side = self._inputs(source, [types.INT32, types.INT32, types.FLOAT])
        image = dali.fn.decoders.image_slice(
            encoded,
            start=_of_size_or_nowhere(start, encoded, size),
            shape=shape,
            axes=[0, 1],
            output_type=types.RGB,
            adjust_orientation=False,
            **self._decoder,
        )
        return self._scaled(image, *side) if self.resizes else image

    def _resize(self, source: Source) -> Any:
        dali = _import_dali()
        types = dali.types
        encoded, told, *how = self._inputs(source, [types.FLOAT, types.INT32, types.INT32])
        image = dali.fn.decoders.image(
            _of_size_or_empty(encoded, told),
            output_type=types.RGB,
            adjust_orientation=False,
            **self._decoder,
        )
        if not self.resizes:
            return image
        size, start, side = how
        return dali.fn.slice(
            self._scaled(image, size),
            start=start,
            shape=side,
            axes=[0, 1],
            out_of_bounds_policy="pad",
            fill_values=0,
        )

    @property
    def _decoder(self) -> dict[str, Any]:
        if self.device_id is None:
            return {"device": "cpu"}
        share = {} if self.decode_share is None else {"hw_decoder_load": self.decode_share}
        return {"device": "mixed", **share}

    def _scaled(self, image: Any, size: Any) -> Any:
        dali = _import_dali()
        return dali.fn.resize(image, size=size, interp_type=dali.types.INTERP_LINEAR, antialias=self.antialias)

    def _inputs(self, source: Source, where: list[Any]) -> tuple[Any, ...]:
        """Contents, indexed sizes, and of what says `where` the windows and, if DALI resizes, the rest."""
        dali = _import_dali()
        types = dali.types
        cuts = where if self.resizes else where[:2] if self.kind == "window" else []
        dtypes = [types.UINT8, types.INT64, *cuts]
        given, *others = dali.fn.external_source(
            source=source,
            num_outputs=len(dtypes),
            dtype=dtypes,
            ndim=[1] * len(dtypes),
            no_copy=not source.gives_names,
        )
        if source.gives_names:
            given = dali.fn.io.file.read(given, dont_use_mmap=self.dont_use_mmap)
        return given, *others

    def to_torch(self, output: Any) -> torch.Tensor:
        """A batch on the GPU as a tensor."""
        tensor = torch.from_dlpack(output.as_tensor())
        # The buffer goes back to DALI when the tensor dies, while kernels may still be reading it: copy it.
        with torch.cuda.stream(self._stream):
            copy = tensor.clone()
        self._stream.synchronize()
        return copy

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device_id)


# A decoder takes memory for the size in a file's header, of which a file can claim any. So a file whose header tells
# of another size than the index is refused before it is decoded, with as few operators as will do: each costs time.


def _of_size_or_nowhere(start: Any, encoded: Any, size: Any) -> Any:
    """Where a window begins, outside of every image if the file's header tells of another size than the index."""
    return start + (_size_in_header(encoded) != size) * np.int32(2**30)


def _of_size_or_empty(encoded: Any, size: Any) -> Any:
    """The file, or nothing of it if its header tells of another size than the index."""
    dali = _import_dali()
    told = _size_in_header(encoded)
    is_right = (told[0] == size[0]) & (told[1] == size[1])
    length = dali.fn.cast(encoded.shape()[0], dtype=dali.types.INT32) * dali.fn.cast(is_right, dtype=dali.types.INT32)
    return dali.fn.slice(encoded, start=np.zeros(1, np.int32), shape=length, axes=[0])


def _size_in_header(encoded: Any) -> Any:
    """Height and width, (2,) int64."""
    return _import_dali().fn.peek_image_shape(encoded, adjust_orientation=False)[:2]


def _for_current_stream(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Tell the allocator which stream reads the images, since another one made them."""
    for batch in batches:
        if batch.images.is_cuda:
            batch.images.record_stream(torch.cuda.current_stream(batch.images.device))
        yield batch


def _gist(error: Exception) -> str:
    """What a DALI error says, without its context."""
    text = str(error).split("encountered:")[-1]
    for noise in ("C++ context", "Current pipeline object"):
        text = text.split(noise)[0]
    return " ".join(text.split()).rstrip(" :") or type(error).__name__


def _import_dali() -> Any:
    try:
        import nvidia.dali as dali
    except ImportError as error:
        raise ConfigError(
            f"data.loader=dali needs DALI, which cannot be imported ({one_line(error)}): "
            "install nvidia-dali-cuda130 or set data.loader=torchvision"
        ) from error
    return dali
