"""The paper's grid of runs: planning and computing it, on this machine or on a cluster."""
