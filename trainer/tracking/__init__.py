"""What a run tells the world: journal, MLflow, manifest, progress and status.

The journal is the truth; MLflow is a reader of it. Importing this package loads neither mlflow, torch nor
rich.
"""

from __future__ import annotations

from trainer.tracking.journal import Journal, read_journal
from trainer.tracking.manifest import build_manifest, write_manifest
from trainer.tracking.mlflow_sink import MlflowSender
from trainer.tracking.progress import Progress
from trainer.tracking.status import Status, read_status, write_status
from trainer.tracking.sync import SyncReport, sync_run

__all__ = [
    "Journal",
    "MlflowSender",
    "Progress",
    "Status",
    "SyncReport",
    "build_manifest",
    "read_journal",
    "read_status",
    "sync_run",
    "write_manifest",
    "write_status",
]
