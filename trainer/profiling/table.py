"""The account of some steps as lines of text."""

from __future__ import annotations

from statistics import fmean

from trainer.profiling.account import SECTIONS, Account

ALWAYS = ("data", "to_device", "forward", "backward", "communication", "optimizer")


def account_lines(ranks: list[Account], steps: tuple[int, int]) -> list[str]:
    """A line for each section of the first rank's step; with several ranks, how far they lie apart.

    Args:
        ranks: their accounts, the first rank's first.
        steps: numbers of the first and last recorded step.
    """
    mine = ranks[0]
    step_ms = fmean(mine.step_ms)
    spread = f"{min(mine.step_ms):.1f} to {max(mine.step_ms):.1f}"
    where = "of the GPU's time" if mine.on_device else "of the time"
    several = len(ranks) > 1
    lines = [f"steps {steps[0]} to {steps[1]} took {step_ms:.1f} ms each ({spread}); where rank 0 spent them, {where}:"]
    lines += [f"  {'':<22} {'ms':>9} {'%':>6}" + (f"   all {len(ranks)} ranks, ms" if several else "")]
    total = sum(mine.sections.values())
    for section, label in SECTIONS.items():
        each = [account.sections[section] for account in ranks]
        if section not in ALWAYS and not any(each):
            continue
        apart = f"   {min(each):.1f} to {max(each):.1f}" if several else ""
        lines.append(f"  {label:<22} {each[0]:>9.2f} {100 * each[0] / total:>6.1f}{apart}")
    if any(account.hidden_ms for account in ranks):
        lines.append(f"  {mine.hidden_ms:.2f} ms more of communication hid behind computing")
    return lines
