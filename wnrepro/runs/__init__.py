"""One run: its directory, checkpoint, provenance and media. `directory` does not import torch."""
