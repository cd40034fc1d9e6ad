"""All copies in one launch of a Numba kernel."""
