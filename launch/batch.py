"""`reste slurm`: an sbatch script that one can read, and handing it to SLURM."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from launch.batch_options import BatchOptions
from launch.batch_work import Work, plan_work
from trainer.errors import ConfigError

TEMPLATE = Path(__file__).parent / "slurm" / "template.sh"


class _Script(string.Template):
    delimiter = "@@"


def render(
    path: Path,
    overrides: list[str],
    options: BatchOptions,
    *,
    cases: Sequence[str] = (),
    seeds: int = 1,
    log: str = "%x-%j.log",
) -> str:
    """The script of a job that trains a configuration, or the cases of a study.

    Args:
        path: a configuration file, as it is found from the folder in which the job is submitted.
        overrides: `key=value` strings; `%a` in them is the number of an array's task.
        options: what the job asks for.
        cases: those of `reste study runs`, for an array with a task for each run that is not finished.
        seeds: runs of each case.
        log: file for the output of all starts, with sbatch's signs.

    Raises:
        ConfigError: the configuration is wrong, or cannot be trained by a job that starts again.
    """
    return _script(plan_work(path, overrides, options, cases, seeds), options, log)


def _script(work: Work, options: BatchOptions, log: str) -> str:
    values = {
        "command": shlex.join(["reste", "slurm", "render", *work.words, *options.arguments()]),
        "name": options.name or work.name,
        "log": log,
        "nodes": options.nodes,
        "resources": "\n".join(f"#SBATCH {line}" for line in _resources(options, options.array or work.array)),
        "signal": f"B:USR1@{options.signal_before}",
        "requeue": "requeue" if options.requeues else "no-requeue",
        "place": work.place,
        "passed": work.passed,
        "requeues": options.requeues,
        "failures": options.failures,
        "setup": "".join(f"{line}\n" for line in options.setup),
        "devices": "GPUs" if options.gpus_per_node else "CPUs",
        "torchrun": " \\\n        ".join(_torchrun(work, options)),
        "srun": "".join(f" \\\n    {part}" for part in _pyxis(options)),
    }
    return _Script(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def _resources(options: BatchOptions, array: str | None) -> list[str]:
    lines = [f"--gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []
    lines += [f"--cpus-per-task={options.cpus_per_node}"] if options.cpus_per_node else ["--exclusive"]
    if options.mem or not options.cpus_per_node:
        lines.append(f"--mem={options.mem or 0}")
    asked = {name: getattr(options, name) for name in ("time", "partition", "account", "qos")} | {"array": array}
    lines += [f"--{name}={value}" for name, value in asked.items() if value]
    return [*lines, *options.sbatch]


def _torchrun(work: Work, options: BatchOptions) -> list[str]:
    """The agent's command, cut where the script breaks its line."""
    command = [
        f'torchrun --nnodes={options.nodes} --node-rank="$SLURM_NODEID" --nproc-per-node={options.ranks}',
        '--master-addr="$SLURM_LAUNCH_NODE_IPADDR" --master-port="$PORT" --rdzv-id="$SLURM_JOB_ID"',
        " ".join(["-m trainer", *work.arguments]),
    ]
    if options.container_runtime != "apptainer":
        return command
    binds = ['--bind "$PWD"', *(f"--bind {shlex.quote(mount)}" for mount in options.mount)]
    devices = ["--nv"] if options.gpus_per_node else []
    image = shlex.quote(options.container or "")
    return [" ".join(["apptainer exec", *devices, '--pwd "$PWD"', *binds, image]), *command]


def _pyxis(options: BatchOptions) -> list[str]:
    if options.container_runtime != "pyxis":
        return []
    mounts = ",".join(['"$PWD:$PWD"', *(shlex.quote(m if ":" in m else f"{m}:{m}") for m in options.mount)])
    return [
        f'--container-image={shlex.quote(options.container or "")} --container-workdir="$PWD"',
        f"--container-mounts={mounts}",
    ]


def write(script: str, out: Path | None) -> None:
    """Print a script, or write it to a file."""
    if out is None:
        sys.stdout.write(script)
        return
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent}: make it, or choose another --out")
    out.write_text(script, encoding="utf-8")
    out.chmod(0o755)


def submit(
    path: Path,
    overrides: list[str],
    options: BatchOptions,
    *,
    cases: Sequence[str] = (),
    seeds: int = 1,
    out: Path | None = None,
) -> None:
    """Hand the job to SLURM, with the arguments of `render`; its script stays in the run's folder, `slurm/JOB.sh`.

    Raises:
        ConfigError: the job cannot be made, there is no sbatch here, or SLURM refuses; nothing is left then.
    """
    if out is not None:
        raise ConfigError("--out is for `reste slurm render`: a submitted script is kept in the run's folder")
    if shutil.which("sbatch") is None:
        raise ConfigError("there is no sbatch here: submit on a node of the cluster, or use `reste slurm render`")
    work = plan_work(path, overrides, options, cases, seeds)
    logs = work.logs
    log = logs / ("%A_%a.log" if options.array or work.array else "%j.log")
    script = _script(work, options, _pattern_free(log))
    made = [place for place in (logs, *logs.parents) if not place.exists()]
    logs.mkdir(parents=True, exist_ok=True)
    try:
        job = _sbatch(script)
    except ConfigError:
        for place in made:
            with suppress(OSError):
                place.rmdir()
        raise
    (logs / f"{job}.sh").write_text(script, encoding="utf-8")
    _tell(job, work, options, log)


def _pattern_free(log: Path) -> str:
    found = re.search(r"[^\w./@+:,=~-]", str(log.parent))
    if found:
        what = "a blank" if found[0] == " " else repr(found[0])
        raise ConfigError(f"{log.parent} holds {what}, which sbatch cannot write to: choose another run.dir")
    return str(log)


def _sbatch(script: str) -> str:
    """Submit; the job's number. The job finds the programs beside this Python, as a shell in its environment does."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        ["sbatch", "--parsable"], input=script, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    if done.returncode:
        told = " ".join(done.stderr.split()).removeprefix("sbatch: error: ")
        raise ConfigError(f"sbatch refuses the job: {told}")
    return done.stdout.strip().partition(";")[0]


def _tell(job: str, work: Work, options: BatchOptions, log: Path) -> None:
    shown = str(log).replace("%j", job).replace("%A", job)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"job {job}: {work.folder} on {options.nodes} x {options.ranks} ranks\n"
        f"output   tail -F {shown}\n"
        f"status   reste status {work.folder}   squeue --job {job}\n"
        f"pause    scancel --signal=USR1 {job}   (saves a checkpoint, is queued again)\n"
        f"cancel   scancel {job}   (saves a checkpoint, ends)" + (f"\ncompare  {work.after}" if work.after else ""),
        markup=False,
    )
