"""`python -m lib_loratorio`."""

import sys

from lib_loratorio.cli import main

sys.exit(main())
