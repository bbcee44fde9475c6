"""The public HTTP routes: classify, sweep, health, documentation and the console."""
