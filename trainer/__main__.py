"""`python -m trainer CONFIG [key=value ...]`: one rank, under torchrun, srun or deepspeed, or alone."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.distributed.lifeline import end_with_launcher
from trainer.errors import EXIT_BUG, EXIT_FINISHED, EXIT_STOPPED
from trainer.failures import note_exit_code
from trainer.main import run_rank


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
    # A rank that has only lost its peers knows no reason; those that do agree on it.
    if code == EXIT_BUG or not note_exit_code(code):
        return code
    # To torchrun any other number is a failure, for which it ends the peers while they are leaving.
    return EXIT_FINISHED if code == EXIT_STOPPED else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
