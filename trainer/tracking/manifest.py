"""manifest.json: by what code, on what machine, with what data a run was made. No secrets, no environment."""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.secrets import redact_argv
from trainer.tracking.files import write_json

MANIFEST_FILE = "manifest.json"
_PACKAGES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "timm": ("timm",),
    "triton": ("triton",),
    "deepspeed": ("deepspeed",),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "dali": ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110"),
    "reste-trainer": ("reste-trainer",),
}


def build_manifest(
    *,
    seed: int,
    config_digest: str,
    data_digest: str,
    world_size: int,
    argv: list[str] | None = None,
    code_dir: Path | None = None,
) -> dict[str, Any]:
    """Describe this run and the machine of this rank.

    Args:
        seed: The run's seed.
        config_digest: Digest of the resolved configuration.
        data_digest: Digest of the data set's index.
        world_size: Number of ranks.
        argv: Command line; `sys.argv` if None. Passwords and tokens in it are masked.
        code_dir: Folder whose git state is recorded; that of this package if None.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(redact_argv(sys.argv if argv is None else argv)),
        "seed": seed,
        "config_digest": config_digest,
        "data_digest": data_digest,
        "world_size": world_size,
        "code": git_state(code_dir or Path(__file__).resolve().parent),
        "versions": versions(),
        "machine": {
            "hostname": socket.gethostname(),
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpus": _gpu_names(),
        },
    }


def write_manifest(run_dir: Path, manifest: dict[str, Any], *, ended: Mapping[str, Any] | None = None) -> None:
    """Write `run_dir/manifest.json`; those of earlier starts stay under "earlier", oldest first.

    Args:
        run_dir: the run's folder.
        manifest: of this start.
        ended: how the start before it ended, kept with that one.
    """
    path = run_dir / MANIFEST_FILE
    earlier: list[dict[str, Any]] = []
    if path.exists():
        try:
            previous = json.loads(path.read_text(encoding="utf-8"))
            earlier = [*previous.pop("earlier", []), previous | ({"ended": dict(ended)} if ended else {})]
        except (ValueError, AttributeError):
            path.replace(path.with_suffix(".damaged.json"))
    write_json(path, {**manifest, "earlier": earlier})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers, read without importing them."""
    found = {"python": platform.python_version()}
    for name, distributions in _PACKAGES.items():
        for distribution in distributions:
            try:
                found[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return found


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the code in `folder` and whether tracked files differ; both None outside version control."""
    nothing: dict[str, Any] = {"commit": None, "dirty": None}
    # An installed copy may lie inside somebody else's repository: only tracked code has a commit.
    if not _git(folder, "ls-files", "."):
        return nothing
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes)} if commit and changes is not None else nothing


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu_names() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
