"""The built-in demo model: data, training, export and held-out tests. Not part of the installed package."""
