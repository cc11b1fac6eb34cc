"""Bytes: keys in, bytes out.  Knows no users and no names of files."""
