"""Pages and terminal faces that speak HTTP, or a TextEngine, only."""
