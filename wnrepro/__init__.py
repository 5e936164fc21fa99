"""Reproduce every experiment of "Weight Normalization" (Salimans & Kingma 2016)."""
