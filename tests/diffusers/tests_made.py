"""The builders of adapters' layers that tests of other hosts have too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from lora_files import ALPHA, RANK, build

__all__ = ["ALPHA", "RANK", "build"]
