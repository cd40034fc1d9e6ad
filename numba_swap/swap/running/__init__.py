"""From where and how to run to work in flight, and what the user is given of it."""
