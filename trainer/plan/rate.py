"""How fast one device trains, by the number of images it gets at a time; and the records that say so."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from trainer.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Point(BaseModel):
    """A measured rate.

    Attributes:
        images: of a micro-batch on the device.
        images_per_s: of whole training steps without other ranks.
    """

    images: Annotated[int, Field(ge=1)]
    images_per_s: Positive


class RateRecord(BaseModel):
    """A JSON file with the rates of one device; keys beside these are free.

    Attributes:
        device: what was measured.
        model: its network, by name.
        image_size: pixels.
        precision: as in `train.precision`.
        points: the measurements, in any order.
    """

    device: str
    model: str
    image_size: int
    precision: str
    points: Annotated[list[Point], Field(min_length=1)]


def read_record(path: Path) -> RateRecord:
    """Read a record of rates.

    Raises:
        ConfigError: there is none, or it is not one.
    """
    try:
        return RateRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--record {path} cannot be read ({error.strerror}): name a record of rates") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"--record {path} is no record of rates ({where or 'file'}: {first['msg']}): see docs/plan.md"
        ) from None


@dataclass(frozen=True)
class Rate:
    """Seconds of a step on one device.

    Attributes:
        points: pairs of images and seconds, ascending in both. Between two, time grows linearly; beyond the last, the
            rate stays what it is there.
        fixed_s: seconds that a step takes however few its images are, if a single point does not tell.
    """

    points: tuple[tuple[int, float], ...]
    fixed_s: float = 0.0

    @classmethod
    def of(cls, points: list[Point], fixed_s: float) -> Rate:
        """From measurements; a step of more images is taken to last no less than one of fewer.

        Raises:
            ConfigError: a single measurement is shorter than the fixed time.
        """
        times: list[tuple[int, float]] = []
        for point in sorted(points, key=lambda p: p.images):
            times.append((point.images, max([point.images / point.images_per_s, *(t for _, t in times)])))
        if len(times) > 1:
            return cls(tuple(times), fixed_s=cls._intercept(times))
        images, seconds = times[0]
        if fixed_s >= seconds:
            raise ConfigError(
                f"a step of {images} images takes {1000 * seconds:.3g} ms, less than its fixed part of "
                f"{1000 * fixed_s:.3g} ms: lower --fixed-ms"
            )
        return cls(tuple(times), fixed_s)

    @staticmethod
    def _intercept(times: list[tuple[int, float]]) -> float:
        """Where the line through the two smallest batches meets no images."""
        (b0, t0), (b1, t1) = times[:2]
        return max(t0 - b0 * (t1 - t0) / max(b1 - b0, 1), 0.0)

    @property
    def best(self) -> float:
        """Highest images per second of all batches."""
        return max(images / seconds for images, seconds in self.points)

    def step_s(self, images: float) -> float:
        """Seconds of a micro-batch of so many images; one of fewer pixels counts as a part of one."""
        known = [(0, self.fixed_s), *self.points]
        last, longest = known[-1]
        if images >= last:
            return longest * images / last
        for (b0, t0), (b1, t1) in pairwise(known):
            if images <= b1:
                return t0 + (t1 - t0) * (images - b0) / (b1 - b0)
        raise AssertionError(images)

    def faster(self, factor: float) -> Rate:
        """A device so many times as fast at every batch."""
        return Rate(tuple((images, seconds / factor) for images, seconds in self.points), self.fixed_s / factor)
