"""What tests of all packages begin with."""

import os

# Processes of pytest-xdist have no terminal, but inherit the size of one: readline sets it where they are started.
os.environ.pop("COLUMNS", None)
os.environ.pop("LINES", None)
