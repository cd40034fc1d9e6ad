"""Blocks out and other blocks in, in one call."""
