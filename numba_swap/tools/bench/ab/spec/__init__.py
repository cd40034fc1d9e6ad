"""What a user asks for, as text: arms, cases, grids, units."""
