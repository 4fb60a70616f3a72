"""Distillation: a trained network beside the one that is trained, and what the one learns from the other."""
