"""python launch.py [MODE] --experiment=NAME|FILE|RUN_DIR [--a.b.c=value ...] [--workdir=DIR]"""

import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.stderr.write("error: Python 3.11 or newer is needed, this is %d.%d.\n"  # noqa: UP031
                         % sys.version_info[:2])
        sys.exit(2)
    from jaxdl.cli import main

    sys.exit(main())
