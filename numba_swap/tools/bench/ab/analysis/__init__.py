"""From raw samples to effects and verdicts."""
