"""What a SLURM job may ask for: its options, their checks, and the site file that holds a cluster's defaults."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from trainer.config import schema_keys
from trainer.config_schema import Count, Group
from trainer.config_source import ConfigSource, describe_errors, read_source
from trainer.errors import ConfigError

SITE_VARIABLE = "RESTE_SLURM_SITE"
SITE_FILE = "~/.config/reste/slurm.yaml"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:@+=%-]*$", max_length=200)]
"""What names of SLURM consist of; sbatch's own quotes and file patterns, and the shell, see nothing special in it."""
Word = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]+$")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*\S[^\x00-\x08\x0a-\x1f\x7f]*$")]
_TIME = re.compile(
    r"(?P<d>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?"  # days
    r"|(?:(?:(?P<h>\d+):)?(?P<m>\d+):)?(?P<s>\d+)"  # no days
)
_ARRAY = re.compile(r"(\d+)(?:-(\d+)(?::([1-9]\d*))?)?")


class BatchOptions(Group):
    """The options of `reste slurm`; a site file holds some of them under the same names, with `_` for `-`."""

    nodes: Count = Field(1, description="machines")
    gpus_per_node: Annotated[int, Field(ge=0)] | None = Field(None, description="0 for nodes without GPUs")
    ranks_per_node: Count | None = Field(None, description="null: one for each GPU")
    cpus_per_node: Count | None = Field(None, description="null: whole nodes, with all their CPUs and memory")
    mem: Annotated[str, Field(pattern=r"^[0-9]+[KMGT]?$")] | None = Field(
        None, description="memory of a node, e.g. 480G"
    )
    time: Word | None = Field(None, description="limit as SLURM writes it: minutes, H:MM:SS or D-HH:MM:SS")
    signal_before: Annotated[int, Field(ge=10, le=65535)] = Field(300, description="seconds before the limit to save")
    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    name: Name | None = Field(None, description="null: run.name")
    array: Word | None = Field(None, description="e.g. 0-4; %a in an override is the task's number")
    requeues: Annotated[int, Field(ge=0)] = Field(20, description="times a job starts again, at most")
    failures: Count = Field(3, description="starts in a row that save no checkpoint, at most")
    setup: tuple[Line, ...] = Field((), description="shell lines before training, e.g. module load cuda")
    sbatch: tuple[Line, ...] = Field((), description="further options of sbatch, e.g. --constraint=a100")
    container: Word | None = Field(None, description="image: a .sif for Apptainer, else for Enroot through pyxis")
    runtime: Literal["apptainer", "pyxis"] | None = Field(None, description="null: by the image's name")
    mount: tuple[Word, ...] = Field((), description="folders that the container sees, beside the working folder")

    @field_validator("time")
    @classmethod
    def _time_is_slurms(cls, value: str | None) -> str | None:
        if value is not None and not seconds(value):
            raise ValueError("must be SLURM's minutes, H:MM:SS, D-HH or D-HH:MM:SS, above 0")
        return value

    @field_validator("array")
    @classmethod
    def _array_is_slurms(cls, value: str | None) -> str | None:
        if value is not None and not array_tasks(value):
            raise ValueError("must be SLURM's list of numbers, e.g. 0-4, 1,3,5 or 0-15%4")
        return value

    @field_validator("sbatch")
    @classmethod
    def _sbatch_options_are_whole(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(line.startswith("-") for line in value):
            raise ValueError("must begin with a dash, e.g. --constraint=a100")
        for line in value:
            try:
                shlex.split(line)
            except ValueError:
                raise ValueError(f"must close the quotes it opens: {line}") from None
        return value

    @model_validator(mode="after")
    def _the_whole_fits(self) -> BatchOptions:
        if self.gpus_per_node is None:
            raise ValueError("give --gpus-per-node (0 on nodes without GPUs, with --ranks-per-node)")
        if not self.gpus_per_node and self.ranks_per_node is None:
            raise ValueError("nodes without GPUs need --ranks-per-node")
        if self.gpus_per_node and self.ranks > self.gpus_per_node:
            raise ValueError(f"{self.ranks} ranks need more than {self.gpus_per_node} GPUs: lower --ranks-per-node")
        if self.time is not None and (seconds(self.time) or 0) <= self.signal_before:
            raise ValueError(
                f"--time {self.time} leaves nothing before the signal {self.signal_before} s ahead of its end: "
                "lower --signal-before"
            )
        if self.container is None and (self.runtime or self.mount):
            raise ValueError("--runtime and --mount need --container")
        return self

    @property
    def ranks(self) -> int:
        """Ranks of a node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def container_runtime(self) -> str | None:
        """Who opens the container, if there is one."""
        if self.container is None:
            return None
        return self.runtime or ("apptainer" if self.container.endswith(".sif") else "pyxis")

    def arguments(self) -> list[str]:
        """The options that differ from the defaults, as words of a command line."""
        words = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.default:
                for item in value if isinstance(value, tuple) else (value,):
                    words += ["--" + name.replace("_", "-"), str(item)]
        return words


def load_options(given: Mapping[str, Any], site: Path | None) -> BatchOptions:
    """The options of the command line over those of the site file, if there is one.

    Args:
        given: options by their names with `_`; None for what was not given.
        site: a YAML file; None: the one that RESTE_SLURM_SITE names, or `~/.config/reste/slurm.yaml` if it exists.

    Raises:
        ConfigError: an option is unknown, wrong or contradicts another; or there is no such file.
    """
    source = read_source(_site_file(site), [])
    values = {name: value for name, value in given.items() if value not in (None, [], ())}
    source.merge(values, dict.fromkeys(values, "command line"))
    return _validate(source)


def _site_file(site: Path | None) -> Path | None:
    if site is not None:
        return site
    if os.environ.get(SITE_VARIABLE):
        return Path(os.environ[SITE_VARIABLE])
    default = Path(SITE_FILE).expanduser()
    return default if default.exists() else None


def _validate(source: ConfigSource) -> BatchOptions:
    try:
        return BatchOptions.model_validate_json(json.dumps(source.values), strict=True)
    except ValidationError as error:
        text = describe_errors(error, source, schema_keys(BatchOptions))
        raise ConfigError(text.replace("the configuration has", "the SLURM options have", 1)) from None


def seconds(time: str) -> int | None:
    """A time as SLURM writes it, in seconds; None if it is none. A single number is minutes.

    Source: sbatch(1), --time.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    part = {name: int(value) for name, value in match.groupdict(default="0").items()}
    if match["d"] is not None:
        return ((part["d"] * 24 + part["dh"]) * 60 + part["dm"]) * 60 + part["ds"]
    if match["m"] is None:
        return part["s"] * 60
    return (part["h"] * 60 + part["m"]) * 60 + part["s"]


def array_tasks(form: str) -> list[int]:
    """The task numbers of a job array such as `0-6:2,9%2`; empty if the text is none. Source: sbatch(1), --array."""
    numbers, _, limit = form.partition("%")
    matches = [_ARRAY.fullmatch(item) for item in numbers.split(",")]
    if ("%" in form and not re.fullmatch(r"[1-9]\d*", limit)) or not all(matches):
        return []
    tasks: list[int] = []
    for match in matches:
        assert match
        tasks += range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1))
    return sorted(set(tasks))
