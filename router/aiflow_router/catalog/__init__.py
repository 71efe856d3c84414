"""Which endpoints exist and what they serve: leases, and the immutable snapshot made of them."""
