"""Provides `tureen classify`, `tureen inspect` and `tureen demo`, and the tables that several commands print."""
