"""python launch.py [MODE] --experiment=NAME|FILE|RUN_DIR [--a.b.c=value ...] [--workdir=DIR]"""

import sys

from jaxdl.cli import main

if __name__ == "__main__":
    sys.exit(main())
