"""Processes: the embedded PostgreSQL, nginx, the workers, and the supervisor that keeps them up."""
