"""A SLURM of one's own on this machine: munged, slurmctld and one slurmd for each node, in a folder of their own."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
MARK = "CLUSTER_TEST"
"""Environment variable by which every process of a job is found in /proc."""

ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
"""States in which a job stays."""

CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
SlurmdTimeout={node_timeout}
SlurmctldTimeout=60
MessageTimeout=20
KillWait={kill_wait}
InactiveLimit=0
OverTimeLimit=2
MinJobAge=600
ReturnToService=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


class SlurmFault(AssertionError):  # noqa: N818
    """The cluster did not do what a test needs; the message holds the end of its logs."""


class Cluster:
    """Starts on entry; on exit every daemon and whatever a job has left behind is killed.

    Args:
        folder: for keys, sockets, state and logs. A socket's path must stay below 108 characters.
        nodes: names of the nodes; all of them are this machine.
        node_timeout: seconds of silence after which a node is down.
        kill_wait: seconds between SLURM's SIGTERM and its SIGKILL.
    """

    def __init__(
        self, folder: Path, *, nodes: tuple[str, ...] = ("one", "two"), node_timeout: int = 15, kill_wait: int = 60
    ) -> None:
        missing = [name for name in PROGRAMS if _find(name) is None]
        if missing:
            raise SlurmFault(f"{', '.join(missing)} not found: `make cluster-test` installs slurm-wlm and munge")
        self.folder = folder
        self.nodes = nodes
        self.mark = uuid.uuid4().hex
        self._times = {"node_timeout": node_timeout, "kill_wait": kill_wait}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def _marked(self) -> str:
        return f"{MARK}={self.mark}"

    @property
    def environment(self) -> dict[str, str]:
        """What a user of this cluster has to have set."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), MARK: self.mark}

    def __enter__(self) -> Cluster:
        try:
            self._start_munge()
            self._write_configuration()
            self._start("slurmctld", "-D", "-i")
            for node in self.nodes:
                self.start_node(node)
            self._wait_for_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in ["slurmctld", *self.nodes, "munged"]:
            self._kill(name)
        # The daemons of job steps leave their slurmd's session; they are known by the configuration they serve.
        _kill_all(processes_with(f"SLURM_CONF={self.folder / 'slurm.conf'}"))
        _kill_all(processes_with(self._marked))

    def run(self, *command: str, timeout_s: float = 60) -> str:
        """Run a program of SLURM as a user of this cluster; its standard output.

        Raises:
            SlurmFault: it failed.
        """
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=timeout_s
        )
        if done.returncode:
            raise SlurmFault(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}{self.logs()}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` tells of a job."""
        words = self.run("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def wait(self, number: str, *states: str, after: str | None = None, timeout_s: float = 400) -> dict[str, str]:
        """Wait until a job is in one of these states, or in one of them after it was in another; returns it."""
        deadline = time.monotonic() + timeout_s
        while True:
            job = self.job(number)
            after = None if job["JobState"] == after else after
            if job["JobState"] in states and after is None:
                return job
            if job["JobState"] in ENDS or time.monotonic() > deadline:
                raise SlurmFault(f"job {number}: {job['JobState']}, not {states}\n{_output(job)}{self.logs()}")
            time.sleep(0.3)

    def wait_for_restart(self, number: str, restarts: int, timeout_s: float = 400) -> dict[str, str]:
        """Wait until a job has ended after it was queued again so many times; returns it."""
        deadline = time.monotonic() + timeout_s
        while not ((job := self.job(number))["Restarts"] == str(restarts) and job["JobState"] in ENDS):
            if time.monotonic() > deadline:
                raise SlurmFault(f"job {number}: {job['JobState']}, {job['Restarts']} restarts\n{_output(job)}")
            time.sleep(0.3)
        return job

    def wait_for_empty_queue(self, timeout_s: float = 120) -> None:
        """Wait until every job has ended."""

        def empty() -> bool:
            return not self.run("squeue", "--noheader").strip()

        _wait_until(empty, timeout_s, lambda: self.run("squeue") + self.logs())

    def start_node(self, node: str) -> None:
        """Start the daemon of a node, which has a core of its own, so that its ranks compute on one thread."""
        cores = sorted(os.sched_getaffinity(0))
        core = cores[self.nodes.index(node) % len(cores)]
        self._start("slurmd", "-D", "-N", node, name=node, cores={core})

    def clear(self) -> None:
        """End every job, at once."""
        jobs = self.run("squeue", "--noheader", "--format=%A").split()
        if jobs:
            self.run("scancel", *jobs)
        _kill_all(processes_with(self._marked))

    def kill_node(self, node: str) -> None:
        """End a node as a power cut does: its daemon, those of its job steps, and everything they have started."""
        self._kill(node)
        tasks = [pid for pid in processes_with(f"SLURMD_NODENAME={node}") if pid in processes_with(self._marked)]
        _kill_all([*{_parent(pid) for pid in tasks if _command(_parent(pid)).startswith("slurmstepd")}, *tasks])

    def survivors(self) -> list[str]:
        """Command lines of processes of jobs that still live."""
        return [_command(pid) for pid in processes_with(self._marked) if pid != os.getpid()]

    def logs(self) -> str:
        """The last lines of the daemons."""
        found = sorted(self.folder.glob("*.log"))
        return "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in found)

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        key = folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        # --force: folders above, such as /tmp, may be writable by others.
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *options)
        _wait_until((folder / "socket").exists, 20, lambda: "munged made no socket" + self.logs())

    def _write_configuration(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        ports = free_ports(1 + len(self.nodes))
        nodes = [
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        text = CONF.format(folder=self.folder, controller=ports[0], user=_user(), nodes="\n".join(nodes), **self._times)
        (self.folder / "slurm.conf").write_text(text)

    def _start(self, program: str, *arguments: str, name: str | None = None, cores: set[int] | None = None) -> None:
        path = _find(program)
        assert path
        with (self.folder / f"{name or program}.out.log").open("ab") as output:
            self._daemons[name or program] = subprocess.Popen(
                [path, *arguments],
                env=os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=functools.partial(_settle, cores),
            )

    def _wait_for_nodes(self) -> None:
        def up() -> bool:
            done = subprocess.run(
                ["sinfo", "--noheader", "--Node", "--format=%T"],
                env=os.environ | self.environment,
                capture_output=True,
                text=True,
            )
            return done.stdout.split() == ["idle"] * len(self.nodes)

        _wait_until(up, 60, lambda: "the nodes did not come up" + self.logs())

    def _kill(self, name: str) -> None:
        process = self._daemons.pop(name, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


def processes_with(variable: str) -> list[int]:
    """Ids of processes that have `NAME=VALUE` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def _output(job: dict[str, str]) -> str:
    path = Path(job["StdOut"])
    return path.read_text(errors="replace")[-6000:] if path.exists() else ""


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        stat = (Path("/proc") / str(pid) / "stat").read_text()
        return int(stat.rpartition(")")[2].split()[1])
    return 0


def _kill_all(pids: list[int]) -> None:
    for pid in pids:
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _settle(cores: set[int] | None) -> None:
    """For a new process: have these cores, die with the one that started it (Linux, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if cores:
        os.sched_setaffinity(0, cores)


def _wait_until(condition: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SlurmFault(told())
        time.sleep(0.1)
