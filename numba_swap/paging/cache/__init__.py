"""A cache of the blocks of an array that is larger than the GPU."""
