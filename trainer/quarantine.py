"""The images that a run does without: agreed between the ranks, listed in its folder, told in its journal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trainer.config_schema import DataConfig
from trainer.data.index import Index, write_atomically
from trainer.data.order import TrainOrder
from trainer.data.quarantine import Finding
from trainer.distributed import collectives
from trainer.errors import DataError
from trainer.tracking.recorder import Recorder

log = logging.getLogger(__name__)
LIST = "quarantine.jsonl"
_FINDING = TypeAdapter(Finding)


class SharedQuarantine:
    """The quarantine of a training order as all ranks know it. Made on every rank, a collective.

    What the list says is honoured whatever `data.on_error` is now: it decided what the run has computed. A metric tells
    how many samples are out; it depends on the step alone, so that a resumed run writes the same.

    Args:
        order: whose quarantine is filled from the list.
        data: whether it may grow, and how far.
        recorder: of the run that the list belongs to.
        step: where the run goes on; what was found before has been told.

    Raises:
        DataError: on every rank: the list is damaged or of other data.
    """

    def __init__(self, order: TrainOrder, data: DataConfig, recorder: Recorder, *, step: int) -> None:
        self._quarantine = order.quarantine
        self._grows = data.on_error == "quarantine"
        self._limit = data.max_quarantined
        self._recorder = recorder
        self._file = recorder.directory / LIST
        self._told = step
        self._is_written = True
        found: list[Finding] = []
        with collectives.agreed_errors():
            if collectives.is_main():
                found = read_list(self._file, order.index)
        self._listed = {finding.sample: finding for finding in collectives.broadcast_object(found)}
        self._quarantine.add(self._listed.values())

    def share(self, step: int) -> dict[str, float]:
        """Agree with the other ranks about what the steps before `step` found, list it and tell of it.

        Returns:
            How many samples are out, as a metric; none if the run neither misses nor may miss any.

        Raises:
            DataError: on every rank: more are out than `data.max_quarantined` allows.
        """
        if self._grows:
            mine = [finding for finding in self._quarantine.before(step) if finding.sample not in self._listed]
            if collectives.agree_any(bool(mine)):
                self._quarantine.add(finding for findings in collectives.gather_objects(mine) for finding in findings)
            self._check(step)
        found = self._quarantine.before(step)
        self._list(found)
        for finding in found:
            if finding.step >= self._told:
                self._tell(finding, step)
        self._told = step
        return {"data/quarantined": len(found)} if self._grows or self._listed else {}

    def _check(self, step: int) -> None:
        try:
            self._quarantine.check(self._limit, before=step)
        except DataError as error:
            error.everywhere = True
            raise

    def _list(self, found: Iterable[Finding]) -> None:
        new = {finding.sample: finding for finding in found if finding.sample not in self._listed}
        self._listed |= new
        if not collectives.is_main() or (self._is_written and not new):
            return
        lines = "".join(json.dumps(asdict(finding)) + "\n" for finding in self._listed.values())
        try:
            write_atomically(self._file, lambda file: file.write(lines.encode()))
            self._is_written = True
        except OSError as error:
            self._is_written = False
            log.warning("%s cannot be written (%s); tried again at the next step that logs", self._file, error.strerror)

    def _tell(self, finding: Finding, step: int) -> None:
        fields = asdict(finding)
        self._recorder.event("quarantined", step, since=fields.pop("step"), **fields)
        log.warning(
            "%s (sample %d, rank %d) is left out from step %d on, others stand in for it: %s",
            *(finding.path, finding.sample, finding.rank, finding.step + 1, finding.reason),
        )


def read_list(file: Path, index: Index) -> list[Finding]:
    """What earlier lives of a run found; empty if there is no list.

    Raises:
        DataError: a line is damaged, or the list is of other data.
    """
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): make it readable") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            finding = _FINDING.validate_json(line, strict=True)
        except ValidationError:
            raise DataError(f"{file}:{number} is damaged: mend the line, or remove it to use its image again") from None
        if not 0 <= finding.sample < len(index) or index.paths[finding.sample] != finding.path:
            raise DataError(f"{file}:{number} is of other data than data.root holds now: remove the file")
        found.append(finding)
    return found
