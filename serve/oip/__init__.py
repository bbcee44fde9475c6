"""The Open Inference Protocol v2 over HTTP and gRPC, for clients such as tritonclient and kserve."""
