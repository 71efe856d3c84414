"""The router's doors: gRPC and HTTP."""
