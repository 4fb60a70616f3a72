"""What becomes of a checkpoint outside this program."""
