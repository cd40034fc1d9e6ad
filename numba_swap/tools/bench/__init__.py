"""Measuring: what speed suites and A/B timing share."""
