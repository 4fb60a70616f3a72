"""Which rank is blamed for a hang, and what is said of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from trainer.hang import Inquest, Place, Report, blamed, verdict


def reports(**beats: int) -> dict[int, Report]:
    return {
        int(rank.removeprefix("r")): Report(int(rank.removeprefix("r")), 7, "waiting for data", 20.0, count)
        for rank, count in beats.items()
    }


def test_a_stopped_rank_is_blamed_before_a_silent_one_and_that_before_one_behind() -> None:
    assert blamed(reports(r0=9, r1=8, r3=9), {1: "S", 3: "T"}, 4) == [3]
    assert blamed(reports(r0=9, r1=8, r3=9), {2: "S"}, 4) == [2]
    assert blamed(reports(r0=9, r1=8, r2=9, r3=8), {}, 4) == [1, 3]
    assert blamed(reports(r0=9, r1=9), {}, 2) == []


def test_the_verdict_names_process_state_and_place() -> None:
    places = [Place("here", 100 + rank, "1") for rank in range(3)]
    assert verdict(reports(r0=9, r1=9), {2: "D"}, places) == (
        "rank 2 (process 102 on here) waits inside the system for a disk or a device"
    )
    assert verdict(reports(r0=9, r1=4, r2=9), {}, places) == (
        "rank 1 (process 101 on here) goes on no more, waiting for data after step 7"
    )
    assert verdict(reports(r0=9, r1=9, r2=9), {}, places).startswith("all ranks stand at the same place")


def test_a_silent_process_is_looked_up_continued_and_made_to_dump_its_stacks(tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    code = (
        "import faulthandler, signal, sys, time\n"
        "faulthandler.register(signal.SIGQUIT, file=open(sys.argv[1], 'w'))\n"
        "def stuck_here():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "stuck_here()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(dump)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        born = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        there = Place(Place.here().host, child.pid, born)
        os.kill(child.pid, signal.SIGSTOP)
        while there.state() != "T":
            time.sleep(0.01)
        inquest = Inquest(tmp_path / "hang", 0, [Place.here(), there])
        own = Report(0, 3, "computing", 6.0, 12)
        inquest.report(own)
        answer = Inquest(tmp_path / "hang", 1, inquest.places)
        assert answer.is_open()
        late = threading.Timer(3.5, answer.report, [Report(1, 3, "computing", 0.0, 12)])
        late.start()
        found, states = inquest.gather(own)
        assert sorted(found) == [0, 1]
        assert states == {1: "T"}
        assert "in stuck_here" in dump.read_text()
        assert there.state() == "S"
        inquest.end_silent({0: found[0]})
        assert child.wait(10) == -signal.SIGKILL
        assert there.state() == "Z"


def test_a_later_process_of_the_same_number_is_not_taken_for_a_rank() -> None:
    here = Place.here()
    assert here.state() == "R"
    Place(here.host, here.pid, "0").send(signal.SIGKILL)
    assert Place(here.host, here.pid, "0").state() == "Z"
    assert Place("elsewhere", here.pid, here.born).state() is None
