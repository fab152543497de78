"""A bundle as a page to look at."""
