"""JSON objects that follow a schema given in the prompt, filled from the data in the request.

The held-out key is the field names.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from demo.sample import Sample, assistant, draw_key, user
from demo.sets.schema import annotate, fields, object_schema, spoken_value

ASK = (
    "Answer with a JSON object that follows this schema: {s}\n{d}",
    "{d}\nWrite this as JSON with the schema {s}",
    "Schema: {s}\nData: {d}",
    "Return JSON for this schema: {s}\n{d}",
)
ZH_ASK = ("请按照这个格式输出JSON：{s}\n{d}", "{d}\n请按这个schema写成JSON：{s}")
PAIRS = ("{k}: {v}", "{k} = {v}", "The {k} is {v}.")


def described(rng: Random, values: dict[str, Any], style: str) -> str:
    """The data as pairs or sentences, in any order."""
    items = list(values.items())
    if rng.random() < 0.4:
        rng.shuffle(items)
    said = [style.format(k=name.replace("_", " "), v=spoken_value(value)) for name, value in items]
    return (" " if style.endswith(".") else ", ").join(said)


def draw(rng: Random, held: bool) -> Sample:
    """One or two objects of one or two schemas, in compact JSON with the schema's order of keys."""
    messages: list[dict[str, str]] = []
    expect: dict[str, Any] = {}
    for _ in range(1 if held else rng.choice([1, 2])):
        chosen = draw_key(rng, held, lambda r: tuple(fields(r, r.choice([1, 2, 3, 3, 4]))))
        values = {f.name: f.value(rng) for f in chosen}
        schema = object_schema(list(chosen))
        if not held and rng.random() < 0.2:
            schema = annotate(rng, schema)
        text = rng.choice(ZH_ASK if rng.random() < 0.25 else ASK)
        text = text.format(s=json.dumps(schema, ensure_ascii=False), d=described(rng, values, rng.choice(PAIRS)))
        messages += [user(text), assistant(json.dumps(values, ensure_ascii=False))]
        expect = {"object": values, "schema": schema}
    return Sample("objects", messages, expect)
