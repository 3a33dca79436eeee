"""Tasks that measure a model through `Engine.generate` and `score` alone."""
