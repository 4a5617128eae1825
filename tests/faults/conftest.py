"""The long form is asked for: FAULTS=long, as `make test-faults` does."""

import os


def pytest_collection_modifyitems(config, items):
    if os.environ.get("FAULTS") == "long":
        return
    long_form = [item for item in items if item.get_closest_marker("long_form")]
    if long_form:
        config.hook.pytest_deselected(items=long_form)
        items[:] = [item for item in items if item not in long_form]
