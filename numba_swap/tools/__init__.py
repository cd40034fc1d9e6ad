"""What a person runs: command line, info, demo, explain, benchmarks."""
