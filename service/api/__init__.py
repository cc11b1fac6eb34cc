"""HTTP: parse, call the domain once, render."""
