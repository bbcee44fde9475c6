"""Models with a clean and a robust mode: the ViT with two tokens, and the ResNet with two sets of norm parameters."""
