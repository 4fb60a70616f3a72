"""Where the time of a step goes: a trace of a few steps, and its account by sections."""
