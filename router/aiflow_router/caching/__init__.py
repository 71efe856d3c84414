"""Answers that are kept: under which key, how many and how long, and who waits for one."""
