"""Speed and memory as ratios of two things measured side by side: `reste bench`, docs/bench.md.

A figure is never asserted: it belongs to the machine that it was measured on.
"""
