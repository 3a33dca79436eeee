"""Random JSON schemas, small enough that a model which says anything ends what they allow."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any


def random_schema(rng: Random, level: int = 0, bounded: bool = False) -> dict[str, Any]:
    """Up to three levels. `bounded`: every instance has an end that no draw can put off."""
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"type": "integer", "minimum": (low := rng.randint(-50, 50)), "maximum": low + rng.randint(0, 400)},
        lambda: {"type": "boolean"},
        lambda: {"type": "null"},
        lambda: {"enum": rng.sample(["red", 1, "二", None, "a\"b", 2.5, "long text"], rng.randint(1, 4))},
        lambda: {"const": rng.choice(["x", 5, False])},
        lambda: {"type": "string", "minLength": (low := rng.randint(0, 3)), "maxLength": low + rng.randint(0, 5)},
        lambda: {"type": "string", "pattern": rng.choice(["^[a-z]{2,4}$", "^[0-9]{3}-[0-9]{2}$"])},
    ]
    if not bounded:
        kinds += [lambda: {"type": "string", "pattern": "^(ab|cd)+$"},
                  lambda: {"type": "number", "minimum": 0, "maximum": 1}]  # fmt: skip
    if level < 3:
        kinds += [lambda: _object(rng, level, bounded), lambda: _object(rng, level, bounded)]
        kinds += [lambda: _array(rng, level, bounded)]
        kinds += [lambda: {"anyOf": [random_schema(rng, level + 1, bounded) for _ in range(2)]}]
    return rng.choice(kinds)()


def _object(rng: Random, level: int, bounded: bool) -> dict[str, Any]:
    names = rng.sample(["a", "name", "城市", "x y", "n1", "list"], rng.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, level + 1, bounded) for name in names},
        "required": names[: rng.randint(0, len(names))],
        "additionalProperties": False,
    }


def _array(rng: Random, level: int, bounded: bool) -> dict[str, Any]:
    least, items = rng.randint(0, 2), random_schema(rng, level + 1, bounded)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + 2}
