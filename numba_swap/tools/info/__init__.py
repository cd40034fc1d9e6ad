"""What is here: driver, GPU, versions, and what they mean."""
