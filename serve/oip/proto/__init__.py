"""The protocol's messages. inference.proto is the source; the modules beside it are what protoc makes of it."""
