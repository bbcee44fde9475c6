"""Turns an image and its β into logits: admission, decoding, batching, the engine. Knows nothing about HTTP."""
