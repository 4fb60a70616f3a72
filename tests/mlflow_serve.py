"""`mlflow models serve` of a model, asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_server import until


class Scorer:
    """A scoring server on a loopback port."""

    def __init__(self, port: int) -> None:
        self._at = f"http://127.0.0.1:{port}"

    def answers(self) -> bool:
        """Whether the model is loaded."""
        try:
            with urllib.request.urlopen(f"{self._at}/ping", timeout=2) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The predictions for a request."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._at}/invocations", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["predictions"]


@contextlib.contextmanager
def served(model: str, store: str, log: Path) -> Iterator[Scorer]:
    """`mlflow models serve -m MODEL`, in an environment that forbids pickles."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        # It starts uvicorn by its name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=log.parent,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    scorer = Scorer(port)
    try:
        until(lambda: process.poll() is not None or scorer.answers(), 180)
        assert process.poll() is None, log.read_text()[-2000:]
        yield scorer
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
