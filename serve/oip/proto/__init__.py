"""The protocol's gRPC messages. protoc generates the modules from inference.proto."""
