"""Shipped weights: each folder is a model family in spiritrt's own layout, read by `spiritrt.load(name)`."""
