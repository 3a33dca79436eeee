"""Random fields: a name, a JSON-schema type and values of that type, for tools and objects.

Names are combined from word lists, so that no model can know them by heart.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from demo.sample import listed
from demo.sets import words

QUALIFIERS = listed("""
    user first last home work start end main new old total max min target source item
""")
TEXT_NOUNS = listed("""
    name city color title place street country team brand model topic label owner author tag animal food hobby code
    unit
""")
NUMBER_NOUNS = listed("""
    age count size price year level score amount height width weight speed days guests pages rank limit number
""")
FLAG_NOUNS = ["active", "open", "paid", "urgent", "visible", "ready"]
NOTES = ("The {}", "The {} to use", "The {}, as the user says it", "Name or value of the {}", "{}", "用户的{}")
CITY_NOUNS = {"city", "place", "street", "country"}
NAME_NOUNS = {"name", "owner", "author"}
EXACT = {"color": words.COLOURS, "animal": words.ANIMALS, "food": words.FOODS, "hobby": words.HOBBIES}


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type: str
    noun: str

    @property
    def schema(self) -> dict[str, str]:
        return {"type": self.type}

    @property
    def spoken(self) -> str:
        return self.name.replace("_", " ")

    def value(self, rng: Random) -> Any:
        if self.type == "integer":
            return words.number(rng)
        if self.type == "boolean":
            return rng.random() < 0.5
        if self.noun in CITY_NOUNS:
            return words.city(rng)
        if self.noun in NAME_NOUNS:
            return words.name(rng)
        if self.noun == "code":
            return words.code(rng)
        return (
            rng.choice(EXACT[self.noun])
            if self.noun in EXACT
            else rng.choice([words.word, words.word, words.name])(rng)
        )


def field(rng: Random) -> Field:
    """A drawn field: half strings, most others integers, few booleans; one name in eight is made up."""
    kind = rng.choices(["string", "integer", "boolean"], [55, 38, 7])[0]
    noun = rng.choice({"string": TEXT_NOUNS, "integer": NUMBER_NOUNS, "boolean": FLAG_NOUNS}[kind])
    if rng.random() < 0.12:
        return Field(words.made_up_word(rng, 2), kind, "")
    return Field(f"{rng.choice(QUALIFIERS)}_{noun}" if rng.random() < 0.35 else noun, kind, noun)


def fields(rng: Random, count: int) -> list[Field]:
    """`count` fields with different names."""
    out: dict[str, Field] = {}
    while len(out) < count:
        drawn = field(rng)
        out.setdefault(drawn.name, drawn)
    return list(out.values())


def object_schema(chosen: list[Field]) -> dict[str, Any]:
    return {"type": "object", "properties": {f.name: f.schema for f in chosen}, "required": [f.name for f in chosen]}


def annotate(rng: Random, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with descriptions at some properties, as people write them: there to be passed over."""
    properties = {}
    for name, kind in schema["properties"].items():
        about = rng.choice(NOTES).format(name.replace("_", " "))
        properties[name] = kind | ({"description": about} if rng.random() < 0.6 else {})
    return schema | {"properties": properties}


def spoken_value(value: Any) -> str:
    """How a user writes a value: JSON's words for booleans, plain text else."""
    return str(value).lower() if isinstance(value, bool) else str(value)
