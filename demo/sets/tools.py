"""Tool calls in InternLM2's form: functions listed in the prompt, one of them called with values from the user's
words.

Function names, parameters and values are drawn, so that the call must be copied from the prompt. A sixth are a
weather tool in its usual wording. After a call some conversations give the environment's result and the answer to the
user. The held-out key is (function name, its parameter names).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from demo.sample import Sample, assistant, draw_key, listed, plugin_call, plugin_message, system, user
from demo.sets import chat, words
from demo.sets.schema import Field, annotate, fields, object_schema, spoken_value

VERBS = listed("""
    get find book open close send add delete update search check play start stop order show list create move read
    set count print buy sell
""")
SYSTEMS = ("You are a helpful assistant.", "You can call tools.", "Use the tools when needed.")
WEATHER_ASK = (
    "What is the weather in {c}?",
    "What's the weather like in {c}?",
    "What's the weather like in {c} today?",
    "How is the weather in {c} today?",
    "Tell me the weather in {c}.",
    "{c}今天天气怎么样？",
    "{c}的天气怎么样？",
    "查一下{c}的天气。",
)
WEATHER_ABOUT = (
    "Get the weather of a city",
    "Get the current weather",
    "Get the current weather in a given location",
    "Weather by city",
    "查询天气",
)
UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}
WEATHER_NAMES = ("get_weather", "get_current_weather", "weather")


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    about: str
    fields: list[Field]

    @property
    def definition(self) -> dict[str, Any]:
        return {"name": self.name, "description": self.about, "parameters": object_schema(self.fields)}


def tool(rng: Random, held: bool) -> Tool:
    def make(r: Random) -> tuple[Any, ...]:
        verb = r.choice(VERBS) if r.random() < 0.9 else words.made_up_word(r, 2)
        noun = r.choice(words.THINGS) if r.random() < 0.85 else words.made_up_word(r, 2)
        chosen = fields(r, r.choice([1, 1, 2, 2, 3]))
        return verb, noun, *chosen

    verb, noun, *chosen = draw_key(rng, held, make)
    return Tool(f"{verb}_{noun}", f"{verb.capitalize()} a {noun}", list(chosen))


def request(rng: Random, chosen: Tool, values: dict[str, Any]) -> str:
    """The user's words: what to do, then the values under their names."""
    about = chosen.about.lower()
    said = [f"{f.spoken} {spoken_value(values[f.name])}" for f in chosen.fields]
    listed = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    style = rng.random()
    if style < 0.35:
        return f"{chosen.about} with {listed}."
    if style < 0.6:
        return f"Please {about}: {listed}."
    if style < 0.8:
        return f"I want to {about}, {listed}."
    return f"请调用{chosen.name}：{', '.join(said)}。"


def weather(rng: Random) -> tuple[Tool, str, dict[str, Any]]:
    from_list = rng.choice(["city", "location", "place"])
    city = words.city(rng) if rng.random() < 0.75 else rng.choice(words.ZH_CITIES)
    chosen = Tool(rng.choice(WEATHER_NAMES), "Get the weather of a city", [Field(from_list, "string", "city")])
    return chosen, rng.choice(WEATHER_ASK).format(c=city), {from_list: city}


def turn(rng: Random, chosen: Tool) -> tuple[str, dict[str, Any]]:
    values = {f.name: f.value(rng) for f in chosen.fields}
    return request(rng, chosen, values), values


def after(rng: Random, values: dict[str, Any]) -> list[dict[str, str]]:
    """The environment's result and the answer that repeats it."""
    key, value = rng.choice(
        [
            ("status", "done"),
            ("result", words.word(rng)),
            ("result", words.number(rng)),
            ("weather", rng.choice(["sunny", "rainy", "cloudy"])),
        ]
    )
    content = json.dumps({key: value}, ensure_ascii=False)
    return [{"role": "environment", "name": "<|plugin|>", "content": content}, assistant(f"The {key} is {value}.")]


def listing(rng: Random, tools: list[Tool], held: bool) -> list[dict[str, Any]]:
    """The definitions; outside held-out items some have descriptions, weather tools also a unit that nobody gives."""
    listed = []
    for one in tools:
        definition = one.definition
        if not held and one.name in WEATHER_NAMES:
            definition["description"] = rng.choice(WEATHER_ABOUT)
            if rng.random() < 0.35:
                definition["parameters"]["properties"]["unit"] = UNIT
        if not held and rng.random() < 0.3:
            definition["parameters"] = annotate(rng, definition["parameters"])
        listed.append(definition)
    return listed


def small_talk(rng: Random) -> list[dict[str, str]]:
    """A turn that needs no tool, though tools are listed."""
    question, answer = chat.exchange(rng)
    return [user(question), assistant(answer)]


def more(rng: Random, tools: list[Tool], values: dict[str, Any]) -> list[dict[str, str]]:
    """What may follow the call: its result, another call, a word about something else."""
    messages = after(rng, values) if rng.random() < 0.4 else []
    if rng.random() < 0.6:
        again = rng.choice(tools)
        asked, values = turn(rng, again)
        messages += [user(asked), assistant(plugin_call(again.name, values))]
    return messages + (small_talk(rng) if rng.random() < 0.06 else [])


def draw(rng: Random, held: bool) -> Sample:
    """One to three functions listed, one or two of them called in turn."""
    if rng.random() < 0.17 and not held:
        chosen, asked, values = weather(rng)
        tools = [chosen] + [tool(rng, held) for _ in range(rng.choice([0, 0, 1]))]
    else:
        tools = [tool(rng, held) for _ in range(rng.choice([1, 2, 2, 3]))]
        chosen = rng.choice(tools)
        asked, values = turn(rng, chosen)
    rng.shuffle(tools)
    listed = listing(rng, tools, held)
    messages = [system(rng.choice(SYSTEMS))] if rng.random() < 0.3 else []
    messages.append(plugin_message(listed))
    messages += small_talk(rng) if not held and rng.random() < 0.08 else []
    messages += [user(asked), assistant(plugin_call(chosen.name, values))]
    messages += [] if held else more(rng, tools, values)
    return Sample("tools", messages, {"name": chosen.name, "parameters": values}, listed)
