"""What may be forgotten at any moment: short-lived answers and throttle counters.  Nothing is decided here alone."""
