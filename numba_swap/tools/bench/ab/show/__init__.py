"""Tables, plots and comparisons of results."""
