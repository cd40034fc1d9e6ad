"""What copies cost: a grid of swaps measured, the costs fitted to it, and what was found."""
