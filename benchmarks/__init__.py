"""Programs that print the figures published in README.md and docs/."""
