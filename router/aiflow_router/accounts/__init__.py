"""Who pays for calls, how much, and what was used."""
