"""What the service does: owns transactions, permissions and the order of effects.  No HTTP, no SQL text."""
