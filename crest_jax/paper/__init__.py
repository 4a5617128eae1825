"""The paper's tables and figures: the runs that they come from, and what came out of ours."""
