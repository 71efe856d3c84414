"""Which of the endpoints that can answer a call gets it."""
