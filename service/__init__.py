"""A self-hosted HTTP file storage service: PostgreSQL keeps the names, nginx moves the bytes."""

__version__ = "0.1.0"
