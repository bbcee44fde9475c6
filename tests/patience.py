"""How long a test waits for an event before it fails: the same for every event.

It is no measure of how long the event should take. For a machine that is slow or busy, TUREEN_TEST_PATIENCE multiplies
it and pytest's limit on each test.
"""

import os

PATIENCE = float(os.environ.get("TUREEN_TEST_PATIENCE", "1"))
DEADLINE_S = 60 * PATIENCE
