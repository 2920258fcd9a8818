"""``python -m chexstudy.cli`` is the command ``chexstudy``."""

import sys

from chexstudy.cli.main import main

sys.exit(main())
