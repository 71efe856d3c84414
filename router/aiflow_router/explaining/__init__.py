"""What the router would do with a call, in words and numbers, and why; nothing is sent."""
