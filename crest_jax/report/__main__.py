"""Write a self-contained HTML page of one run, or of several runs compared.

python -m crest_jax.report --workdir=DIR [--workdir=DIR ...] [--output=FILE.html]
                           [--no-pictures]

Without --output, the page of a single run is written to report.html in its folder, and that of
several runs to ./report.html.
"""

import argparse

from etils.epath import Path

from crest_jax import command, files
from crest_jax.layout import RunFolder
from crest_jax.report import write


@command.entry
def main() -> None:
    """Write the page."""
    parser = command.parser(__doc__)
    parser.add_argument("--workdir", type=files.given, action="append", required=True)
    parser.add_argument("--output", type=files.given)
    parser.add_argument(
        "--pictures", action=argparse.BooleanOptionalAction, default=True,
        help="whether the page shows some of the runs' images",
    )  # fmt: skip
    arguments = parser.parse_args()
    folder = arguments.workdir[0] if len(arguments.workdir) == 1 else Path()
    output = arguments.output or RunFolder(folder).page
    files.check_writable(output)
    write(output, arguments.workdir, pictures=arguments.pictures)
    print(output)


if __name__ == "__main__":
    main()
