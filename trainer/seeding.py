"""Seeds: the initial weights from the run's seed, and each step's generator from (seed, step, rank)."""

from __future__ import annotations

import numpy as np
import torch


def mix(*parts: int) -> int:
    """One 63-bit seed from several integers (NumPy's SeedSequence hash)."""
    words = np.random.SeedSequence([int(part) for part in parts]).generate_state(2, np.uint32)
    return int(words[0]) << 31 ^ int(words[1])


def seed_initialisation(seed: int) -> None:
    """Seed torch so that every rank builds the same initial weights."""
    torch.manual_seed(mix(seed, 0))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step, so that whatever is random in it does not depend on where the run was resumed."""
    words = mix(seed, 1, step, rank)
    # torch.manual_seed would do, but notes the whole call stack wherever no GPU is in use: half a millisecond a step.
    torch.default_generator.manual_seed(words)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(words)
