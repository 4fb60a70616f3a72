"""Data: the index, the order in which samples are seen, and the loaders that turn them into pixels.

The trainer owns order and randomness (`order`), a loader owns pixels (`dali`, `torchvision`, `synthetic`).
Importing this package imports no loader.
"""

from __future__ import annotations
