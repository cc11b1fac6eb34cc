"""Pages for people: what a browser gets at the address of a public link."""
