"""The engine: paged keys and values, packed weights, and whole steps of many rows at once."""
