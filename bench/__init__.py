"""Benchmarks: each first proves its subject right, then says how long it takes, where, and under which settings."""
