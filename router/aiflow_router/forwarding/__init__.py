"""Sending a call to an endpoint and its answer back, as bytes."""
