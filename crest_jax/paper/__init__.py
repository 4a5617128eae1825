"""The paper's tables and figures: the runs behind them, and their published and own results."""
