"""Tests of the long form run only with FAULTS=long, which `make test-faults` sets."""

import os


def pytest_collection_modifyitems(config, items):
    if os.environ.get("FAULTS") == "long":
        return
    long_form = [item for item in items if item.get_closest_marker("long_form")]
    if long_form:
        config.hook.pytest_deselected(items=long_form)
        items[:] = [item for item in items if item not in long_form]
