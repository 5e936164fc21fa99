"""The data sets: their files (no torch needed), their images as tensors, ZCA whitening."""
