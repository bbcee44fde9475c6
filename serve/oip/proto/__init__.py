"""The gRPC messages of the Open Inference Protocol. `protoc` generates the Python modules from inference.proto."""
