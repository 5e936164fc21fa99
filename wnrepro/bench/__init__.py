"""Step times of the parameterizations beside those of a plain PyTorch loop, and a check of what a GPU computes."""
