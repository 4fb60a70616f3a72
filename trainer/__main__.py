"""`python -m trainer CONFIG [key=value ...]`: one rank, under torchrun, srun or deepspeed, or alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trainer.distributed.lifeline import end_with_launcher
from trainer.errors import EXIT_BUG, EXIT_FINISHED, EXIT_STOPPED
from trainer.main import run_rank

EXIT_FILE = "RESTE_EXIT_FILE"
"""Environment variable: file for the exit code, where the launcher in between forgets it, as torchrun does."""


def main(arguments: list[str]) -> int:
    """Read the command line and train."""
    # The deepspeed launcher puts this in front of the program's own arguments; its variables say the same.
    if arguments and arguments[0].startswith("--local_rank="):
        arguments = arguments[1:]
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(
            __doc__.strip() + "\n\nExample: torchrun --nproc-per-node 8 -m trainer configs/imagenet/resnet18_reste.yaml"
        )
        return 0 if arguments else 2
    end_with_launcher()
    code = run_rank(Path(arguments[0]), arguments[1:])
    note = os.environ.get(EXIT_FILE)
    if not note or code == EXIT_BUG:  # a rank that has only lost its peers knows no reason; those that do agree on it
        return code
    Path(note).write_text(f"{code}\n", encoding="utf-8")
    # To torchrun any other number is a failure, for which it ends the peers while they are leaving.
    return EXIT_FINISHED if code == EXIT_STOPPED else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
