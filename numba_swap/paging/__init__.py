"""Data larger than the GPU: a cache of blocks in device memory."""
