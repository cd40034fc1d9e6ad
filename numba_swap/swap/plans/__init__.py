"""What was checked once and runs many times, and what is remembered of earlier runs."""
