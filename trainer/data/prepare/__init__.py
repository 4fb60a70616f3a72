"""Making data sets ready: one indexed layout, every file decoded once before a run depends on it."""

from __future__ import annotations
