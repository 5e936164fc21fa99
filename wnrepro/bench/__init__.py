"""Step times of the parameterizations and of a plain PyTorch loop, and a check of what a GPU computes."""
