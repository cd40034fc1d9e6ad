"""The memory of a case, and the check of every byte that arrives."""
