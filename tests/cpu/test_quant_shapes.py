"""Shapes that a recipe cannot take are refused before the first block, by name, with sizes that work."""

from __future__ import annotations

import pytest

from tokenmill.errors import ConfigError, FormatError
from tokenmill.quant.method import integer_scheme
from tokenmill.quant.recipe import Recipe
from tokenmill.quant.shapes import check_shapes


def check(recipe: Recipe, shapes: dict[str, tuple[int, int]], default: str = "awq") -> None:
    check_shapes(integer_scheme(recipe, default), recipe, shapes)


@pytest.mark.parametrize(
    ("group", "inner", "offered"),
    [(128, 352, "use --w-group-size 32 or 16 or -1"), (80, 384, "use --w-group-size 128 or 64 or 32 or 16 or -1"),
     (128, 100, "use --w-group-size -1")],
)  # fmt: skip
def test_groups_that_do_not_fill_a_row(group: int, inner: int, offered: str) -> None:
    shapes = {"mlp.up": (inner, 384), "mlp.down": (384, inner)}
    with pytest.raises(ConfigError, match=rf"(up|down) has \d+ in-features, which groups of {group}.*{offered}"):
        check(Recipe(group=group), shapes)


@pytest.mark.parametrize(
    ("recipe", "shape", "default"),
    [(Recipe(group=32), (100, 64), "awq"), (Recipe(group=None), (64, 100), "gptq"),
     (Recipe(group=32, bits=3), (36, 64), "gptq")],
)  # fmt: skip
def test_shapes_that_a_format_does_not_pack(recipe: Recipe, shape: tuple[int, int], default: str) -> None:
    with pytest.raises(FormatError, match=r"mlp\.up: "):
        check(recipe, {"mlp.up": shape}, default)


@pytest.mark.parametrize("default", ["awq", "gptq", "gptq_v1", "gptq_v2", "compressed-tensors"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_usual_shapes_pass(default: str, symmetric: bool) -> None:
    recipe = Recipe(group=128, symmetric=symmetric)
    check(recipe, {"q": (4096, 4096), "kv": (1024, 4096), "up": (11008, 4096), "down": (4096, 11008)}, default)
