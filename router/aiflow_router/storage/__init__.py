"""What outlives the process: tenants, keys, credits and usage, in SQLite or Postgres."""
