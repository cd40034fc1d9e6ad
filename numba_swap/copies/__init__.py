"""What is copied, checked: arrays, blocks, pointers, and where each row comes from."""
