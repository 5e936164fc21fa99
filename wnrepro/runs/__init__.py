"""One run: its directory, checkpoint, provenance and media. `directory` imports no torch."""
