"""A run as one self-contained page, or several runs compared.

python -m crest_jax.report --workdir=DIR [--workdir=DIR ...] [--output=FILE.html]

Without --output, the page of a single run is its report.html; of several, ./report.html.
"""

import argparse
import sys

from etils.epath import Path

from crest_jax import files
from crest_jax.errors import CrestError
from crest_jax.report import REPORT, write


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, action="append", required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    folder = arguments.workdir[0] if len(arguments.workdir) == 1 else Path()
    output = arguments.output or folder / REPORT
    try:
        files.check_writable(output)
        write(output, arguments.workdir)
        print(output)
    except CrestError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
