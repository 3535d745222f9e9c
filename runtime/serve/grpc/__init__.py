"""The protocol over gRPC: the same service, the same limits, on the same event loop."""
