"""Administration of tenants: who may what, and each change with its line in the audit log."""
