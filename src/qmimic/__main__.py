"""`python -m qmimic` is the command line."""

import sys

from qmimic.cli import main

sys.exit(main())
