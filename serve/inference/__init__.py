"""From an image and β to logits: admission, decoding, batching, the engine. Knows no HTTP."""
