"""Attacks that change each image within a small radius so that the model misclassifies it: PGD, APGD, AutoAttack, …"""
