"""Attacks within a ball around each image: FGSM, PGD, APGD, Square and AutoAttack."""
