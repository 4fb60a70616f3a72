"""`python -m trainer CONFIG [key=value ...]`: one rank, under torchrun, srun or deepspeed, or alone."""

from __future__ import annotations

import sys
from pathlib import Path

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
    return run_rank(Path(arguments[0]), arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
