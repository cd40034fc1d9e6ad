"""Boxes of n-D arrays: their forms, their edges, and what of them may meet."""
