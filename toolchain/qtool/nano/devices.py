"""Home devices: commands in many phrasings, answered with tool calls; tool results; follow-up commands."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qtool.nano.unit import Message, Unit, call_message, normalize, pick, question, tool_call, vary

ROOMS = (
    "kitchen", "bedroom", "living room", "bathroom", "office", "hallway", "garage",
    "dining room", "nursery", "basement", "attic", "guest room", "balcony", "garden",
)  # fmt: skip
COLORS = ("red", "blue", "green", "white", "yellow", "purple", "orange", "pink")
GENRES = ("jazz", "rock", "pop", "classical", "folk", "blues", "techno", "country", "soul", "reggae")
DOORS = ("front", "back", "garage", "cellar", "patio", "side")
LABELS = ("pasta", "tea", "eggs", "pizza", "laundry", "bread", "rice", "nap", "homework", "cake")
UNITS = ("seconds", "minutes", "hours")

_PROPERTIES: dict[str, dict[str, Any]] = {
    "set_light": {"room": "string", "state": "string", "brightness": "integer", "color": "string"},
    "set_thermostat": {"room": "string", "temperature": "integer"},
    "get_temperature": {"room": "string"},
    "set_timer": {"amount": "integer", "unit": "string", "label": "string"},
    "set_blinds": {"room": "string", "position": "integer"},
    "play_music": {"genre": "string", "room": "string"},
    "stop_music": {"room": "string"},
    "set_volume": {"room": "string", "level": "integer"},
    "set_lock": {"door": "string", "state": "string"},
    "get_lock": {"door": "string"},
}
_DESCRIPTIONS = {
    "set_light": "Control a light",
    "set_thermostat": "Set the temperature of a room",
    "get_temperature": "Read the temperature of a room",
    "set_timer": "Start a timer",
    "set_blinds": "Move the blinds",
    "play_music": "Play music in a room",
    "stop_music": "Stop the music in a room",
    "set_volume": "Set the volume in a room",
    "set_lock": "Lock or unlock a door",
    "get_lock": "Ask whether a door is locked",
}


def tool_definition(name: str) -> dict[str, Any]:
    """The definition of one tool in the shape that chat APIs pass to a template."""
    properties = {key: {"type": kind} for key, kind in _PROPERTIES[name].items()}
    parameters = {"type": "object", "properties": properties}
    function = {"name": name, "description": _DESCRIPTIONS[name], "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS: tuple[dict[str, Any], ...] = tuple(tool_definition(name) for name in _PROPERTIES)


@dataclass(frozen=True)
class Command:
    """One thing to do: the request in words, the call it means, and what to say once it is done."""

    category: str
    text: str
    name: str
    arguments: Mapping[str, Any]
    done: str
    short: str = ""

    @property
    def call(self) -> str:
        """The tool call as text."""
        return tool_call(self.name, self.arguments)

    @property
    def steps(self) -> str:
        """One line of reasoning: the tool and its arguments in words."""
        values = ", ".join(f"{key} {value}" for key, value in self.arguments.items())
        return f"Tool: {self.name}. Values: {values}."


def light(source: random.Random) -> Command:
    """Switch a light, dim it, or color it."""
    room = pick(source, ROOMS)
    kind = source.random()
    if kind < 0.5:
        state = pick(source, ("on", "off"))
        text = pick(source, (
            "turn {s} the {r} light", "turn the {r} light {s}", "switch {s} the light in the {r}",
            "switch the {r} lights {s}", "{r} light {s}", "lights {s} in the {r}", "I want the {r} light {s}",
            "put the light in the {r} {s}", "make sure the {r} light is {s}",
        ))  # fmt: skip
        return Command(
            "lights", text.format(s=state, r=room), "set_light", {"room": room, "state": state},
            f"The {room} light is now {state}.", f"turn it {state}",
        )  # fmt: skip
    if kind < 0.78:
        level = source.randrange(5, 101, 5)
        text = pick(source, (
            "dim the {r} light to {n} percent", "set the {r} light to {n}%", "{r} light at {n} percent",
            "set the brightness in the {r} to {n}", "make the {r} light {n} percent bright",
            "I want {n}% light in the {r}",
        ))  # fmt: skip
        return Command(
            "lights", text.format(n=level, r=room), "set_light", {"room": room, "brightness": level},
            f"The {room} light is now at {level} percent.", f"set it to {level} percent",
        )  # fmt: skip
    color = pick(source, COLORS)
    text = pick(source, (
        "make the {r} light {c}", "set the {r} light to {c}", "I want {c} light in the {r}",
        "change the light in the {r} to {c}", "{c} light in the {r}", "turn the {r} lights {c}",
    ))  # fmt: skip
    return Command(
        "lights", text.format(c=color, r=room), "set_light", {"room": room, "color": color},
        f"The {room} light is now {color}.", f"make it {color}",
    )  # fmt: skip


def thermostat(source: random.Random) -> Command:
    """Set or read the temperature of a room."""
    room = pick(source, ROOMS)
    if source.random() < 0.25:
        text = pick(source, (
            "how warm is it in the {r}?", "what is the temperature in the {r}?", "how cold is the {r}?",
            "tell me the temperature of the {r}", "{r} temperature?", "is it warm in the {r}?",
        ))  # fmt: skip
        return Command("thermostat", text.format(r=room), "get_temperature", {"room": room}, "")
    degrees = source.randrange(15, 29)
    text = pick(source, (
        "set the {r} to {n} degrees", "heat the {r} to {n} degrees", "make it {n} degrees in the {r}",
        "set the thermostat in the {r} to {n}", "{r} thermostat to {n}", "I want {n} degrees in the {r}",
        "change the temperature in the {r} to {n}",
    ))  # fmt: skip
    return Command(
        "thermostat", text.format(n=degrees, r=room), "set_thermostat",
        {"room": room, "temperature": degrees}, f"The {room} is set to {degrees} degrees.",
    )  # fmt: skip


def timer(source: random.Random) -> Command:
    """Start a timer, with or without a label."""
    amount, unit = source.randrange(2, 61), pick(source, UNITS)
    arguments: dict[str, Any] = {"amount": amount, "unit": unit}
    if source.random() < 0.5:
        text = pick(source, (
            "set a timer for {n} {u}", "start a {n} {u} timer", "timer for {n} {u}", "wake me in {n} {u}",
            "count down {n} {u}", "remind me in {n} {u}", "start a timer of {n} {u}",
        ))  # fmt: skip
        done = f"The timer runs for {amount} {unit}."
        return Command("timer", text.format(n=amount, u=unit), "set_timer", arguments, done)
    label = pick(source, LABELS)
    text = pick(source, (
        "set a {l} timer for {n} {u}", "{l} timer {n} {u}", "start a timer called {l} for {n} {u}",
        "remind me of the {l} in {n} {u}", "set a timer for {n} {u} for the {l}", "time the {l} for {n} {u}",
    ))  # fmt: skip
    done = f"The {label} timer runs for {amount} {unit}."
    filled = text.format(n=amount, u=unit, l=label)
    return Command("timer", filled, "set_timer", arguments | {"label": label}, done)


def blinds(source: random.Random) -> Command:
    """Open, close or set the blinds. Position 100 is open, 0 is closed."""
    room = pick(source, ROOMS)
    if source.random() < 0.5:
        word, position = pick(source, (("open", 100), ("close", 0), ("half open", 50)))
        text = pick(source, (
            "{w} the blinds in the {r}", "{w} the {r} blinds", "{r} blinds: {w}",
            "please {w} the blinds in the {r} now",
        ))  # fmt: skip
        text = text.format(w=word, r=room)
    else:
        position = source.randrange(0, 101, 5)
        text = pick(source, (
            "set the {r} blinds to {n} percent", "move the blinds in the {r} to {n}%",
            "{r} blinds at {n} percent",
            "blinds to {n} in the {r}", "I want the {r} blinds at {n}%",
        )).format(n=position, r=room)  # fmt: skip
    done = f"The {room} blinds are at {position} percent."
    return Command("blinds", text, "set_blinds", {"room": room, "position": position}, done)


def music(source: random.Random) -> Command:
    """Play or stop music, or set the volume."""
    room, kind = pick(source, ROOMS), source.random()
    if kind < 0.5:
        genre = pick(source, GENRES)
        text = pick(source, (
            "play {g} in the {r}", "play some {g} music in the {r}", "I want to hear {g} in the {r}",
            "{g} music in the {r}", "put on {g} in the {r}", "start {g} in the {r}",
        ))  # fmt: skip
        done = f"Now playing {genre} in the {room}."
        return Command(
            "music", text.format(g=genre, r=room), "play_music", {"genre": genre, "room": room}, done
        )
    if kind < 0.7:
        text = pick(source, (
            "stop the music in the {r}", "turn off the music in the {r}", "no more music in the {r}",
            "silence in the {r}", "{r} music off", "make the {r} quiet",
        ))  # fmt: skip
        return Command(
            "music",
            text.format(r=room),
            "stop_music",
            {"room": room},
            f"The music in the {room} has stopped.",
        )
    level = source.randrange(1, 101)
    text = pick(source, (
        "set the volume in the {r} to {n}", "{r} volume {n}", "volume {n} in the {r}",
        "make the music in the {r} {n} percent loud", "change the {r} volume to {n}",
    ))  # fmt: skip
    done = f"The volume in the {room} is {level}."
    return Command("music", text.format(n=level, r=room), "set_volume", {"room": room, "level": level}, done)


def locks(source: random.Random) -> Command:
    """Lock, unlock or ask about a door."""
    door, kind = pick(source, DOORS), source.random()
    if kind < 0.3:
        text = pick(source, (
            "is the {d} door locked?", "did I lock the {d} door?", "check the lock of the {d} door",
            "is the {d} door open?", "what about the {d} door lock?",
        ))  # fmt: skip
        return Command("locks", text.format(d=door), "get_lock", {"door": door}, "")
    word, state = pick(source, (("lock", "locked"), ("unlock", "unlocked")))
    text = pick(source, (
        "{w} the {d} door", "please {w} the {d} door now", "{d} door: {w} it",
        "I want you to {w} the {d} door",
        "{w} the door at the {d}", "make sure the {d} door is {s}", "the {d} door should be {s}",
    ))  # fmt: skip
    done = f"The {door} door is now {state}."
    return Command(
        "locks", text.format(w=word, d=door, s=state), "set_lock", {"door": door, "state": state}, done
    )


KINDS = (light, thermostat, timer, blinds, music, locks)
_OPENINGS = (
    "",
    "",
    "",
    "",
    "please ",
    "hey, ",
    "could you ",
    "can you ",
    "now ",
    "ok, ",
    "quick, ",
    "hello, ",
)
_CLOSINGS = ("", "", "", "", " please", " now", " for me", " thanks", ", thank you", " right away")


def spoken(source: random.Random, text: str) -> str:
    """Wrap a command in the small words that people add, and give it a capital and a full stop."""
    asks = text.endswith("?")
    opening = pick(source, _OPENINGS) if not asks else pick(source, ("", "", "hey, ", "hello, ", "please, "))
    closing = "" if asks or "please" in text else pick(source, _CLOSINGS)
    whole = opening + text + closing
    whole = whole[0].upper() + whole[1:]
    return vary(source, whole if asks else whole + ".")


def with_tools(source: random.Random, unit: Unit, names: tuple[str, ...]) -> Unit:
    """The same unit, sometimes shown with a tools list that holds the tools it needs and a few others."""
    if source.random() > 0.05:
        return unit
    others = [name for name in _PROPERTIES if name not in names]
    chosen = list(dict.fromkeys(names)) + source.sample(others, source.randrange(3))
    source.shuffle(chosen)
    return replace(unit, tools=tuple(tool_definition(name) for name in chosen))


def command_unit(source: random.Random, category: str) -> Unit:
    """One command of the given category and its tool call."""
    command = {kind.__name__.replace("light", "lights"): kind for kind in KINDS}[category](source)
    unit = question(command.category, spoken(source, command.text), command.call, command.steps)
    return with_tools(source, unit, (command.name,))


def two_calls(source: random.Random) -> Unit:
    """Two commands in one sentence, answered with two tool calls in order."""
    first, second = (kind(source) for kind in source.sample(KINDS, 2))
    joined = pick(source, (" and ", ", then ", " and then ", " and also ", ", and "))
    text = spoken(source, first.text.rstrip("?") + joined + second.text.rstrip("?"))
    unit = question("two calls", text, f"{first.call}\n{second.call}", f"{first.steps}\n{second.steps}")
    return with_tools(source, unit, (first.name, second.name))


def _result(source: random.Random, command: Command) -> tuple[dict[str, Any], str]:
    """What the tool reports, and what the assistant then says."""
    if command.name == "get_temperature":
        degrees = source.randrange(5, 33)
        return {"temperature": degrees}, f"It is {degrees} degrees in the {command.arguments['room']}."
    if command.name == "get_lock":
        state = pick(source, ("locked", "unlocked"))
        return {"state": state}, f"The {command.arguments['door']} door is {state}."
    if source.random() < 0.2:
        reason = pick(source, ("device offline", "no connection", "low battery", "not found", "busy"))
        return {"ok": False, "error": reason}, f"Sorry, that did not work: {reason}."
    return {"ok": True}, command.done


def tool_result(source: random.Random) -> Unit:
    """A command, its call, the tool's report; the assistant confirms in one sentence."""
    command = pick(source, KINDS)(source)
    if source.random() < 0.3:
        command = pick(source, (thermostat, locks))(source)
    text = spoken(source, command.text)
    result, answer = _result(source, command)
    content = json.dumps(result)
    messages: tuple[Message, ...] = (
        {"role": "user", "content": text},
        call_message(command.name, command.arguments),
        {"role": "tool", "content": content},
    )
    keys = (normalize(text), f"{normalize(text)} -> {content}")
    unit = Unit("tool result", messages, answer, f"The tool says: {content}", keys)
    return with_tools(source, unit, (command.name,))


def follow_up(source: random.Random) -> Unit:
    """A light command, its confirmation, and a second command that says "it" or only names a room."""
    first, second = light(source), light(source)
    if source.random() < 0.5:
        second = replace(second, arguments=dict(second.arguments) | {"room": first.arguments["room"]})
        text = pick(source, ("Now {s}.", "And now {s}.", "Then {s}.", "Please {s}.", "Ok, {s}.")).format(
            s=second.short
        )
    else:
        second = replace(second, arguments=dict(first.arguments) | {"room": second.arguments["room"]})
        phrase = pick(
            source, ("And the {r}?", "Same in the {r}.", "The {r} too.", "Also in the {r}, please.")
        )
        text = phrase.format(r=second.arguments["room"])
    opening, text = spoken(source, first.text), vary(source, text)
    messages: tuple[Message, ...] = (
        {"role": "user", "content": opening},
        {"role": "assistant", "content": first.call},
        {"role": "user", "content": text},
    )
    keys = (normalize(opening), f"{normalize(opening)} -> {normalize(text)}")
    return Unit("follow-up", messages, second.call, second.steps, keys)
