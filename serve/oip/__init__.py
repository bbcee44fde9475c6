"""The Open Inference Protocol v2 over HTTP and gRPC, so that its clients (tritonclient, kserve) just work."""
