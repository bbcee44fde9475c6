"""What measures: every figure of the README is printed by a command here."""
