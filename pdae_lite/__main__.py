"""`python -m pdae_lite` is the `pdae` command."""
import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main())
