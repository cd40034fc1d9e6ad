"""The GPU that is measured, real or simulated, and its memory."""
