"""Client connections: listening, admission, reading, answering."""
