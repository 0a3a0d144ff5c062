"""`scones`, as the file of that name starts it."""

import sys

from cli.app import main

if __name__ == "__main__":
    sys.exit(main())
