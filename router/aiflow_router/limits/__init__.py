"""Whether and when a call goes: how many may be at a backend at once, and who waits for a place."""
