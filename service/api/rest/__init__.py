"""The JSON protocol, one file per noun."""
