"""Compilers of the same kernel sources, of which none knows another."""
