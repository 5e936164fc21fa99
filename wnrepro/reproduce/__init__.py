"""The paper's whole grid of runs: what there is to do, and doing it, on this machine or on a cluster."""
