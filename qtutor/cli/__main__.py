import sys

from qtutor.cli import main

sys.exit(main())
