"""`python -m trainer CONFIG [key=value ...]`: one rank, under torchrun, srun or deepspeed, or alone."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.distributed.lifeline import end_with_launcher
from trainer.main import run_rank


def main(arguments: list[str]) -> int:
    """Read the command line and train."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(
            __doc__.strip() + "\n\nExample: torchrun --nproc-per-node 8 -m trainer configs/imagenet/resnet18_reste.yaml"
        )
        return 0 if arguments else 2
    end_with_launcher()
    return run_rank(Path(arguments[0]), arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
