"""Password hashes and tokens."""
