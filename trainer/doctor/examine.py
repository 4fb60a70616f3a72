"""All checks, one after the other on all ranks at once; each ends, also where a rank hangs or never comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.config import Config
from trainer.distributed.board import Board, open_board
from trainer.distributed.environment import Environment
from trainer.doctor.check import Check, Context, Problem
from trainer.doctor.data import IMAGES_DECODED, INDEX
from trainer.doctor.files import DISK, PLACE, SHARED_FOLDER
from trainer.doctor.machine import DEVICE, LIMITS, SOFTWARE, THREADS
from trainer.doctor.network import ALL_REDUCE, CLOCKS, CONFIGURATION, PORTS
from trainer.doctor.tracker import TRACKER
from trainer.errors import ConfigError, UserError

CHECKS: tuple[Check, ...] = (
    CONFIGURATION,
    SOFTWARE,
    DEVICE,
    THREADS,
    LIMITS,
    PORTS,
    CLOCKS,
    ALL_REDUCE,
    PLACE,
    SHARED_FOLDER,
    INDEX,
    DISK,
    IMAGES_DECODED,
    TRACKER,
)
JOIN_S = 60.0
_GRACE_S = 5.0


@dataclass
class Finding:
    """What came of one check.

    Attributes:
        check: its name.
        state: `ok`, `failed` or `skipped`.
        result: what was found, in a few words.
        problems: what does not hold.
        seconds: how long it took.
    """

    check: str
    state: str
    result: str
    problems: list[Problem] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Report:
    """What came of all checks; `exit_code` is 0 if all hold, 3 if only data is wrong, else 2."""

    ranks: int
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """Of `reste doctor`."""
        codes = {problem.exit_code for finding in self.findings for problem in finding.problems}
        return 0 if not codes else min(codes)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {"ok": self.exit_code == 0, "exit_code": self.exit_code, **asdict(self)}


@dataclass
class _Standing:
    """What all ranks know after each check: which ranks are gone, which checks did not hold."""

    lost: list[int]
    failed: list[str]


def examine(
    config: Config,
    environment: Environment,
    show: Callable[[Report], None],
    *,
    checks: Sequence[Check] = CHECKS,
    join_s: float = JOIN_S,
) -> int:
    """Ask everything, together with the other ranks; the exit code, the same on all that are left.

    Args:
        config: what would be trained.
        environment: this rank's place.
        show: called on rank 0 with the report, before any rank leaves.
        checks: which, in order; the same on all ranks.
        join_s: seconds to wait for all ranks to come.

    Raises:
        ConfigError: rank 0 cannot be reached, or went away.
    """
    board = open_board(environment, timeout_s=join_s)
    context = Context(config, environment, board)
    findings: list[Finding] = []
    standing = _roll_call(board, join_s, findings)
    for check in checks:
        findings.append(_ask(check, context, standing))
        standing = _agree(board, check.name, standing, check.limit_s)
    if board.rank == 0:
        report = Report(environment.world_size, findings)
        show(report)
        board.post("exit code", report.exit_code)
        # The board may live in this process: the others read before it goes.
        _collect(board, "left", [rank for rank in range(1, board.world) if rank not in standing.lost], _GRACE_S)
        return report.exit_code
    code = int(_from_main(board, "exit code", join_s))
    board.post(f"left/{board.rank}", True)
    return code


def _roll_call(board: Board, join_s: float, findings: list[Finding]) -> _Standing:
    standing = _Standing([], [])
    board.post(f"here/{board.rank}", True)
    if board.rank == 0:
        started = time.monotonic()
        present, standing.lost = _collect(board, "here", list(range(board.world)), join_s)
        finding = Finding("ranks", "ok", f"{len(present)} of {board.world} came", seconds=time.monotonic() - started)
        if standing.lost:
            fix = "see what that rank's start says; all need the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE"
            finding.state, finding.problems = (
                "failed",
                [Problem(standing.lost, f"did not come within {join_s:.0f} s", fix)],
            )
        findings.append(finding)
    return _agree(board, "ranks", standing, join_s)


def _agree(board: Board, name: str, standing: _Standing, limit_s: float) -> _Standing:
    """Rank 0's view of where things stand, on every rank."""
    if board.rank == 0:
        board.post(f"{name}/standing", asdict(standing))
        return standing
    return _Standing(**_from_main(board, f"{name}/standing", limit_s))


def _from_main(board: Board, name: str, limit_s: float) -> Any:
    try:
        return board.read(name, limit_s + 3 * _GRACE_S)
    except (TimeoutError, RuntimeError):
        raise ConfigError(f"rank {board.rank} lost rank 0, waiting for its {name}: see what rank 0 says") from None


def _collect(board: Board, name: str, ranks: list[int], timeout_s: float) -> tuple[dict[int, Any], list[int]]:
    """What the ranks left under `name/RANK`, and the ranks that left nothing in time."""
    deadline = time.monotonic() + timeout_s
    found, missing = {}, []
    for rank in ranks:
        try:
            found[rank] = board.read(f"{name}/{rank}", max(deadline - time.monotonic(), 0.0))
        except TimeoutError:
            missing.append(rank)
    return found, missing


def _ask(check: Check, context: Context, standing: _Standing) -> Finding:
    """Look, on every rank; on rank 0 also judge, and note in `standing` who is gone and whether the check holds."""
    unmet = [name for name in check.needs if name in standing.failed]
    if check.together and standing.lost:
        unmet = [f"rank {', '.join(map(str, standing.lost))}"]
    if unmet:
        standing.failed.append(check.name)
        return Finding(check.name, "skipped", f"not tried without {', '.join(unmet)}")
    started = time.monotonic()
    mine = attempt(check, context)
    context.board.post(f"{check.name}/{context.rank}", mine)
    if context.rank != 0:
        return Finding(check.name, "ok", "")
    left = max(check.limit_s - (time.monotonic() - started), 0.0) + _GRACE_S
    ranks = [rank for rank in range(context.board.world) if rank not in standing.lost]
    answers, missing = _collect(context.board, check.name, ranks, left)
    result, problems = verdict(check, answers, context.config)
    if missing:
        standing.lost += missing
        problems.append(Problem(missing, f"gave no answer within {check.limit_s + _GRACE_S:.0f} s", check.stuck))
    if any(problem.sure for problem in problems):
        standing.failed.append(check.name)
    return Finding(check.name, "failed" if problems else "ok", result, problems, time.monotonic() - started)


def attempt(check: Check, context: Context) -> dict[str, Any]:
    """Look within the time limit: `{"facts": ...}`, or what went wrong as `{"what", "fix", "exit_code"}`."""
    answer: dict[str, Any] = {
        "what": f"did not end within {check.limit_s:.0f} s",
        "fix": check.stuck,
        "exit_code": ConfigError.exit_code,
    }

    def work() -> None:
        nonlocal answer
        answer = look(check, context)

    thread = threading.Thread(target=work, name=f"doctor-{check.name}", daemon=True)
    thread.start()
    thread.join(check.limit_s)
    return answer


def look(check: Check, context: Context) -> dict[str, Any]:
    """Look, and turn whatever is raised into an answer: a check that crashes is one that does not hold."""
    try:
        return {"facts": check.look(context)}
    except UserError as error:
        # Every user error ends in `: fix` or `: run: command`.
        what, _, fix = str(error).rpartition(": ")
        what = what.removesuffix(": run")
        return {"what": what or fix, "fix": fix if what else check.stuck, "exit_code": error.exit_code}
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return {"what": said, "fix": check.stuck, "exit_code": ConfigError.exit_code}


def verdict(check: Check, answers: dict[int, dict[str, Any]], config: Config) -> tuple[str, list[Problem]]:
    """The result and the problems of a check, from every rank's answer; like problems of several ranks become one."""
    problems: list[Problem] = []
    for rank, answer in answers.items():
        if "facts" not in answer:
            same = [p for p in problems if (p.what, p.fix) == (answer["what"], answer["fix"])]
            if same:
                same[0].ranks.append(rank)
            else:
                problems.append(Problem([rank], **answer))
    facts = {rank: answer["facts"] for rank, answer in answers.items() if "facts" in answer}
    if not facts:
        return "", problems
    try:
        result, found = check.judge(facts, config)
    except Exception as error:
        result, found = "", [Problem(sorted(facts), f"{type(error).__name__}: {error}", check.stuck)]
    return result, problems + found
