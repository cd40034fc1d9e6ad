"""What a run is where nothing is said; apart, for the command line shows it and must be light."""

ROUNDS = 24
SAMPLE_MS = 2.0
MOST_ARM_S = 120.0
