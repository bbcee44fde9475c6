"""Attacks within an l∞ ball: PGD, APGD and AutoAttack."""
