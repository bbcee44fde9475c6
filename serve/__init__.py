"""The HTTP and gRPC server. Requests at different β share one batch of one compiled backbone. Never imports torch."""
