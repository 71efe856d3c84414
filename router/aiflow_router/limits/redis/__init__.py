"""Buckets that several routers share, in a Redis or Valkey."""
