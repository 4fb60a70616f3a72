"""Words of configurations that several parts understand; imports nothing."""

STAGE = "stage:"
"""In front of the name of a run beside another one, such as an earlier stage of the same training."""
