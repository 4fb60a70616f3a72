"""Is everything there that a run needs? Asked on every rank; the cheap questions before every training.

`examine.py` asks them all, `preflight.py` the cheap ones. A check is two functions: `look` gathers facts on every rank,
`judge` compares them on one.
"""
