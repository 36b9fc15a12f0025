"""For every test."""

from __future__ import annotations

import os

# tox sets it, so that these tests import the installed wheel. The servers that they start are run as a user
# would run them.
os.environ.pop("PYTHONSAFEPATH", None)
