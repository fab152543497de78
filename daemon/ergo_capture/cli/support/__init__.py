"""What several commands share: declaring arguments, output, finding captures, talking to a daemon."""
