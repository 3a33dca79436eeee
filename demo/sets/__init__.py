"""One file per training set. Each offers `draw(rng, held) -> Sample`; `held` picks the held-out half of its space."""
