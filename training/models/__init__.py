"""Models with a clean and a robust mode: the dual-token ViT, and the ResNet with dual normalisation layers."""
