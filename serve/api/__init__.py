"""The public HTTP application: classify, sweep, health, documentation and the console."""
