"""The HTTP and gRPC server. Requests at different β share the batches of one compiled model. Never imports torch."""
