"""`reste slurm`: an sbatch script that one can read, and handing it to SLURM."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from launch.batch_options import BatchOptions, array_tasks
from trainer.config import Config, load_config
from trainer.config_yaml import UNPRINTABLE
from trainer.errors import ConfigError
from trainer.secrets import redact

TEMPLATE = Path(__file__).parent / "slurm" / "template.sh"
TASK = "%a"
"""In an override: the number of the array's task, as in file names of sbatch."""

_STAND_IN = "40494049"  # for the task's number, where a configuration is read to learn its folder


class _Script(string.Template):
    delimiter = "@@"


def render(path: Path, overrides: list[str], options: BatchOptions, *, log: str = "%x-%j.log") -> str:
    """The script of a job that trains a configuration.

    Args:
        path: a configuration file, as it is found from the folder in which the job is submitted.
        overrides: `key=value` strings; `%a` in them is the number of an array's task.
        options: what the job asks for.
        log: file for the output of all starts, with sbatch's signs.

    Raises:
        ConfigError: the configuration is wrong, or cannot be trained by a job that starts again.
    """
    folder = run_folder(path, overrides, options)
    _refuse_what_no_script_may_hold([str(path), *overrides])
    values = {
        "command": shlex.join(["reste", "slurm", "render", str(path), *overrides, *options.arguments()]),
        "name": options.name or folder.name.replace(TASK, "").strip("-_."),
        "log": log,
        "nodes": options.nodes,
        "resources": "\n".join(f"#SBATCH {line}" for line in _resources(options)),
        "signal": f"B:USR1@{options.signal_before}",
        "requeue": "requeue" if options.requeues else "no-requeue",
        "run": _quoted(str(folder)),
        "requeues": options.requeues,
        "failures": options.failures,
        "setup": "".join(f"{line}\n" for line in options.setup),
        "devices": "GPUs" if options.gpus_per_node else "CPUs",
        "torchrun": " \\\n        ".join(_torchrun(path, overrides, options)),
        "srun": "".join(f" \\\n    {part}" for part in _pyxis(options)),
    }
    return _Script(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def run_folder(path: Path, overrides: list[str], options: BatchOptions) -> Path:
    """The run's folder, with `%a` where an array's task has its number.

    Raises:
        ConfigError: as `render`.
    """
    marked = any(TASK in override for override in overrides)
    if marked and options.array is None:
        raise ConfigError(f"{TASK} in an override is the number of an array's task: give --array, e.g. --array 0-4")
    for task in array_tasks(options.array or "0")[:: max(len(array_tasks(options.array or "0")) - 1, 1)]:
        _check(load_config(path, [override.replace(TASK, str(task)) for override in overrides]))
    config = load_config(path, [override.replace(TASK, _STAND_IN) for override in overrides])
    folder = Path(str(config.run_dir).replace(_STAND_IN, TASK))
    if options.array is not None and (TASK not in folder.name or TASK in str(folder.parent)):
        raise ConfigError(f"the tasks of an array need run folders of their own: run.name={config.run.name}-{TASK}")
    return folder


def _refuse_what_no_script_may_hold(words: list[str]) -> None:
    for word in words:
        if UNPRINTABLE.search(word):
            raise ConfigError(f"{word!r} holds a control character or a line end, which would end a line of the script")
        if redact(word) != word:
            raise ConfigError(
                f"{redact(word)} holds a password, which the script would keep: give it to the job by its environment "
                "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
            )


def _check(config: Config) -> None:
    if config.resume != "auto":
        raise ConfigError(
            f"resume={config.resume}: a job that is requeued must go on from its own newest checkpoint: use resume=auto"
        )


def _resources(options: BatchOptions) -> list[str]:
    lines = [f"--gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []
    lines += [f"--cpus-per-task={options.cpus_per_node}"] if options.cpus_per_node else ["--exclusive"]
    if options.mem or not options.cpus_per_node:
        lines.append(f"--mem={options.mem or 0}")
    for name in ("time", "partition", "account", "qos", "array"):
        value = getattr(options, name)
        lines += [f"--{name}={value}"] if value else []
    return [*lines, *options.sbatch]


def _torchrun(path: Path, overrides: list[str], options: BatchOptions) -> list[str]:
    """The agent's command, cut where the script breaks its line."""
    command = [
        f'torchrun --nnodes={options.nodes} --node-rank="$SLURM_NODEID" --nproc-per-node={options.ranks}',
        '--master-addr="$SLURM_LAUNCH_NODE_IPADDR" --master-port="$PORT" --rdzv-id="$SLURM_JOB_ID"',
        " ".join(["-m trainer", *(_quoted(word) for word in [str(path), *overrides])]),
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


def _quoted(text: str) -> str:
    """A word for the shell, in which `%a` becomes the number of the array's task."""
    parts = text.split(TASK)
    return '"$SLURM_ARRAY_TASK_ID"'.join(shlex.quote(part) if part else "" for part in parts)


def write(script: str, out: Path | None) -> None:
    """Print a script, or write it to a file."""
    if out is None:
        sys.stdout.write(script)
        return
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent}: make it, or choose another --out")
    out.write_text(script, encoding="utf-8")
    out.chmod(0o755)


def submit(path: Path, overrides: list[str], options: BatchOptions, out: Path | None = None) -> None:
    """Hand the job to SLURM; its script stays in the run's folder, `slurm/JOB.sh`.

    Raises:
        ConfigError: the job cannot be made, there is no sbatch here, or SLURM refuses; nothing is left then.
    """
    if out is not None:
        raise ConfigError("--out is for `reste slurm render`: a submitted script is kept in the run's folder")
    if shutil.which("sbatch") is None:
        raise ConfigError("there is no sbatch here: submit on a node of the cluster, or use `reste slurm render`")
    folder = run_folder(path, overrides, options)
    # The tasks of an array share one folder for script and output, beside their run folders.
    logs = (folder.parent if options.array else folder) / "slurm"
    log = logs / ("%A_%a.log" if options.array else "%j.log")
    script = render(path, overrides, options, log=_pattern_free(log))
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
    _tell(job, folder, options, log)


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


def _tell(job: str, folder: Path, options: BatchOptions, log: Path) -> None:
    shown = str(log).replace("%j", job).replace("%A", job)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"job {job}: {folder} on {options.nodes} x {options.ranks} ranks\n"
        f"output   tail -F {shown}\n"
        f"status   reste status {folder}   squeue --job {job}\n"
        f"pause    scancel --signal=USR1 {job}   (saves a checkpoint, is queued again)\n"
        f"cancel   scancel {job}   (saves a checkpoint, ends)",
        markup=False,
    )
