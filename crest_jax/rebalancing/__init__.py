"""One file per rebalancing idea."""
