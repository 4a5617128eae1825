"""The paper's tables and figures: the runs that they come from, and the published and our own results."""
