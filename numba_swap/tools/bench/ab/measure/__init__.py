"""Running the arms in turn."""
