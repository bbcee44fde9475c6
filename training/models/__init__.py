"""Dual-token models: ViT, ResNet with token adapters, and pretrained weights."""
