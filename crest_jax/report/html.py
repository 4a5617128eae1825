"""A page that shows one run, or compares several, and needs no network."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from crest_jax.report import contents
from crest_jax.report.contents import ReportedRun

# The templates only arrange the values of `contents`. What they insert is escaped.
TEMPLATES = Environment(
    loader=PackageLoader("crest_jax.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def page(runs: Sequence[ReportedRun]) -> str:
    """Return the page as HTML.

    Args:
      runs: at least one run. Several are compared first, then each has its own section.
    """
    return TEMPLATES.get_template("page.html.j2").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        comparison=contents.comparison(runs) if len(runs) > 1 else None,
        runs=[contents.section(run) for run in runs],
    )
