"""`python -m qtutor.cli`: the `qtutor` command where it is not on the path."""

import sys

from qtutor.cli import main

sys.exit(main())
