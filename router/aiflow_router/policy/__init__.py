"""The policy in force, where it may come from, and how it is changed while the router runs."""
