"""One GPU's state: memory, streams, what is in flight, and what is used again."""
