"""Where driver libraries lie, and what their files say."""
