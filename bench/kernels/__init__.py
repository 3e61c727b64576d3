"""Every variant of every op: first proved right against the reference, then timed. One file an op says what to run."""
