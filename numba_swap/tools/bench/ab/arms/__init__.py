"""What is timed: ways of moving blocks, this package's and others'."""
