"""The data sets: their files (without torch), their images as tensors, and ZCA whitening."""
