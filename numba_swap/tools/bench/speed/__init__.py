"""The speed suite: ceilings and products in one run, target against measured."""
