"""Which mode, and why: pure rules over facts."""
