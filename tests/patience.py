"""DEADLINE_S: how long a test waits for any event before it fails. It does not say how long the event should take.

TUREEN_TEST_PATIENCE multiplies it and the pytest timeout of each test, for a slow or busy machine.
"""

import os

PATIENCE = float(os.environ.get("TUREEN_TEST_PATIENCE", "1"))
DEADLINE_S = 120 * PATIENCE
