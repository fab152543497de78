"""Code shared by several commands: declaring arguments, output, finding captures, talking to a daemon."""
