"""Data larger than the GPU: a cache of blocks, tiles of fields that stream through it."""
