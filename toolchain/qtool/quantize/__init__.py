"""Weights as small integers: schemes (data), algorithms (pure functions), packing, storage."""
