"""A real MLflow server, and a proxy in front of it that is slow, silent, or asks for a password."""

from __future__ import annotations

import base64
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class Server:
    """`mlflow server` on a loopback port, with all its processes in one group.

    Args:
        folder: for its database, artifacts and log.
        login: (user, password of 12 letters or more) of MLflow's own basic authentication; None asks nobody.
    """

    def __init__(self, folder: Path, login: tuple[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._login = login
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "files")]
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        if self._login is not None:
            command += ["--app-name", "basic-auth"]
            environment |= self._authentication(*self._login)
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            until(self._answers, 70)
        except AssertionError:
            self.kill()
            raise

    def _authentication(self, user: str, password: str) -> dict[str, str]:
        settings = self._folder / "auth.ini"
        settings.write_text(
            f"[mlflow]\nadmin_username = {user}\nadmin_password = {password}\ndefault_permission = NO_PERMISSIONS\n"
            f"database_uri = sqlite:///{self._folder}/users.db\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        return {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of no other server"}

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            until(lambda: not self._answers())

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False


class Proxy:
    """Passes requests on to a server, under the conditions of the moment.

    Attributes:
        delay_s: seconds before each request is passed on.
        down: hang up instead.
        login: `user:password` that requests must bring; others are answered with 401.
        calls: requests so far.
    """

    def __init__(self, port: int | None = None) -> None:
        self.delay_s = 0.0
        self.down = False
        self.login: str | None = None
        self.calls = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.calls += 1
                time.sleep(proxy.delay_s)
                if proxy.down:
                    self.close_connection = True
                    return
                if proxy.refuses(self.headers.get("Authorization")):
                    self._answer(401, b"You are not authenticated.")
                    return
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                    connection.request(self.command, self.path, body=body, headers=headers)
                    answer = connection.getresponse()
                    self._answer(answer.status, answer.read(), answer.headers.get("Content-Type"))
                except OSError:
                    self.close_connection = True
                finally:
                    connection.close()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

            def _answer(self, status: int, body: bytes, kind: str | None = "text/plain") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind or "application/octet-stream")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def refuses(self, header: str | None) -> bool:
        """Whether a request with this Authorization header must not pass."""
        if self.login is None:
            return False
        return header != "Basic " + base64.b64encode(self.login.encode()).decode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
