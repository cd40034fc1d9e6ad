"""Fields larger than the GPU, tile by tile."""
