"""Where the behaviours find what they share: `small`, models and data of a few numbers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
