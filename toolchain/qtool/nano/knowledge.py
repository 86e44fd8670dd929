"""Closed tables of simple facts, small talk, and both in a few other languages."""

# ruff: noqa: RUF001  (Chinese text has Chinese punctuation)

from __future__ import annotations

import random

from qtool.nano.unit import Message, Unit, normalize, pick, question, vary

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome", "Portugal": "Lisbon",
    "Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin", "Hungary": "Budapest",
    "Japan": "Tokyo", "China": "Beijing", "India": "Delhi", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Peru": "Lima", "Cuba": "Havana", "Chile": "Santiago",
    "Turkey": "Ankara", "Russia": "Moscow", "Ukraine": "Kyiv", "Belgium": "Brussels", "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
}  # fmt: skip
COLORS_OF = {
    "grass": "green", "snow": "white", "blood": "red", "a banana": "yellow", "coal": "black",
    "the sky": "blue",
    "a lemon": "yellow", "milk": "white", "a tomato": "red", "chocolate": "brown", "a flamingo": "pink",
    "a crow": "black", "gold": "yellow", "a frog": "green", "the sea": "blue", "a mouse": "gray",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "open": "closed", "fast": "slow",
    "old": "young",
    "wet": "dry", "hard": "soft", "light": "dark", "full": "empty", "early": "late", "left": "right",
    "high": "low", "happy": "sad", "loud": "quiet", "rich": "poor", "strong": "weak", "thick": "thin",
    "first": "last", "inside": "outside", "clean": "dirty", "near": "far", "long": "short",
}  # fmt: skip
LEGS = {
    "dog": 4,
    "cat": 4,
    "bird": 2,
    "spider": 8,
    "beetle": 6,
    "horse": 4,
    "bee": 6,
    "snake": 0,
    "duck": 2,
    "fish": 0,
}
SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "horse": "neigh",
    "pig": "oink",
    "bee": "buzz", "lion": "roar", "mouse": "squeak", "dove": "coo", "frog": "croak",
}  # fmt: skip
BABIES = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal", "pig": "piglet",
    "duck": "duckling", "bear": "cub", "hen": "chick", "frog": "tadpole",
}  # fmt: skip
AMOUNTS = {
    ("minutes", "an hour"): 60, ("seconds", "a minute"): 60, ("hours", "a day"): 24, ("days", "a week"): 7,
    ("months", "a year"): 12, ("weeks", "a year"): 52, ("meters", "a kilometer"): 1000, ("grams",
    "a kilogram"): 1000,
    ("centimeters", "a meter"): 100, ("years", "a century"): 100, ("items", "a dozen"): 12, ("sides",
    "a triangle"): 3,
    ("sides", "a square"): 4, ("letters", "the English alphabet"): 26, ("days", "a leap year"): 366,
}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November",
    "December",
)  # fmt: skip
NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jonas", "Kim", "Lena",
    "Max", "Nora",
    "Oscar", "Paula", "Quinn", "Rosa", "Sam", "Tina", "Uma", "Victor", "Wendy", "Yara",
)  # fmt: skip
EMOJI = {
    "smiley": "😀", "heart": "❤️", "cat": "🐱", "dog": "🐶", "sun": "☀️", "moon": "🌙", "star": "⭐",
    "fire": "🔥",
    "rocket": "🚀", "house": "🏠", "tree": "🌳", "fish": "🐟",
}  # fmt: skip


def _frame(source: random.Random, text: str) -> str:
    """Add an opening that asks, so that one fact has many phrasings. ``text`` ends with a question mark."""
    opening = pick(
        source, ("", "", "", "Tell me, ", "Quick question: ", "Hi, ", "Please tell me: ", "Hey, ", "So, ")
    )
    closing = pick(source, ("", "", "", " Thanks.", " Please be brief.", " I forgot."))
    body = text if not opening else text[0].lower() + text[1:]
    return vary(source, opening + body + closing)


def _capital(source: random.Random) -> tuple[str, str]:
    country = pick(source, tuple(CAPITALS))
    city = CAPITALS[country]
    if source.random() < 0.3:
        text = pick(source, ("{c} is the capital of which country?", "Which country has {c} as its capital?"))
        return text.format(c=city), f"{city} is the capital of {country}."
    text = pick(source, (
        "What is the capital of {c}?", "Which city is the capital of {c}?",
        "What is the capital city of {c}?",
        "Do you know the capital of {c}?", "{c}: what is its capital?",
    ))  # fmt: skip
    return text.format(c=country), f"The capital of {country} is {city}."


def _color(source: random.Random) -> tuple[str, str]:
    thing = pick(source, tuple(COLORS_OF))
    text = pick(
        source,
        ("What color is {t}?", "Which color is {t}?", "What is the color of {t}?", "The color of {t}?"),
    )
    return text.format(t=thing), f"{thing[0].upper()}{thing[1:]} is {COLORS_OF[thing]}."


def _opposite(source: random.Random) -> tuple[str, str]:
    pairs = OPPOSITES | {value: key for key, value in OPPOSITES.items()}
    word = pick(source, tuple(pairs))
    text = pick(
        source, ("What is the opposite of {w}?", "Opposite of {w}?", "Which word is the opposite of {w}?")
    )
    return text.format(w=word), f"The opposite of {word} is {pairs[word]}."


def _order(source: random.Random) -> tuple[str, str]:
    kind, table = pick(source, (("day", DAYS), ("month", MONTHS)))
    place, step = source.randrange(len(table)), pick(source, (1, -1))
    word = {1: "after", -1: "before"}[step]
    text = pick(source, ("Which {k} comes {w} {x}?", "What {k} is {w} {x}?", "What is the {k} {w} {x}?"))
    neighbor = table[(place + step) % len(table)]
    return text.format(k=kind, w=word, x=table[place]), f"{neighbor} comes {word} {table[place]}."


def _animal(source: random.Random) -> tuple[str, str]:
    kind = source.randrange(3)
    if kind == 0:
        animal = pick(source, tuple(LEGS))
        text = pick(
            source,
            ("How many legs does a {a} have?", "How many legs has a {a}?", "The number of legs of a {a}?"),
        )
        return text.format(a=animal), f"A {animal} has {LEGS[animal]} legs."
    if kind == 1:
        animal = pick(source, tuple(SOUNDS))
        text = pick(
            source, ("What sound does a {a} make?", "What does a {a} say?", "Which sound makes a {a}?")
        )
        return text.format(a=animal), f"A {animal} says {SOUNDS[animal]}."
    animal = pick(source, tuple(BABIES))
    text = pick(
        source, ("What is a baby {a} called?", "What do you call a young {a}?", "Name of a baby {a}?")
    )
    return text.format(a=animal), f"A baby {animal} is called a {BABIES[animal]}."


def _amount(source: random.Random) -> tuple[str, str]:
    (unit, whole), amount = pick(source, tuple(AMOUNTS.items()))
    text = pick(source, (
        "How many {u} are in {w}?", "How many {u} does {w} have?", "{u} in {w}?",
        "What number of {u} makes {w}?",
    )).format(u=unit, w=whole)  # fmt: skip
    return text[0].upper() + text[1:], f"There are {amount} {unit} in {whole}."


def fact(source: random.Random) -> Unit:
    """One fact in one of many phrasings. Held out by phrasing: a fact that exists once cannot be derived."""
    maker = pick(source, (_capital, _capital, _color, _opposite, _order, _animal, _amount))
    text, answer = maker(source)
    topic = maker.__name__.lstrip("_")
    return question("facts", _frame(source, text), answer, f"This is a question about: {topic}.")


def listing(source: random.Random) -> Unit:
    """All days or months, from a given one on."""
    kind, table = pick(source, (("days of the week", DAYS), ("months", MONTHS), ("months", MONTHS)))
    start = source.randrange(len(table))
    text = pick(source, (
        "List the {k} from {x} on.", "Name all {k}, starting with {x}.", "Write the {k} in order from {x}.",
        "Say the {k}. Begin with {x}.", "Give me the {k} beginning with {x}.", "The {k} in order, first {x}.",
    )).format(k=kind, x=table[start])  # fmt: skip
    ordered = table[start:] + table[:start]
    return question("lists", vary(source, text), ", ".join(ordered) + ".", f"Start with {table[start]}.")


_HELLO = ("Hello", "Hi", "Hey", "Good morning", "Good evening", "Good afternoon", "Greetings", "Hi there")
_TALK = {
    "How are you?": "I am fine, thank you. How can I help you?",
    "How is it going?": "I am fine, thank you. How can I help you?",
    "Are you well?": "I am fine, thank you. How can I help you?",
    "What is your name?": "My name is nano.",
    "Who are you?": "My name is nano.",
    "What are you called?": "My name is nano.",
    "What can you do?": "I can control your home, calculate, and answer simple questions.",
    "How can you help me?": "I can control your home, calculate, and answer simple questions.",
    "Are you a robot?": "I am a very small language model.",
    "Are you human?": "I am a very small language model.",
    "What are you?": "I am a very small language model.",
    "Tell me a joke.": "Why did the light go out? It was tired.",
    "Make me laugh.": "Why did the light go out? It was tired.",
    "Thank you.": "You are welcome.",
    "Thanks a lot.": "You are welcome.",
    "That was great, thank you.": "You are welcome.",
    "Goodbye.": "Goodbye. Have a nice day.",
    "See you later.": "Goodbye. Have a nice day.",
    "Good night.": "Good night. Sleep well.",
    "I am tired.": "Then take a rest.",
    "I am happy.": "I am glad to hear that.",
    "I am sad.": "I am sorry to hear that.",
    "I am hungry.": "Then have something to eat.",
    "I am bored.": "Ask me for a joke.",
}


def small_talk(source: random.Random) -> Unit:
    """Greetings, questions about the assistant itself, moods, emoji."""
    kind = source.random()
    if kind < 0.15:
        name = pick(source, tuple(EMOJI))
        text = pick(source, (
            "Show me a {n} emoji.", "Send a {n} emoji.", "Give me the emoji for {n}.", "Draw a {n} emoji.",
            "Which emoji is a {n}?", "Please send me a {n} emoji.", "I want a {n} emoji.",
        )).format(n=name)  # fmt: skip
        return question(
            "small talk", vary(source, text), f"Here is a {name}: {EMOJI[name]}", f"Emoji: {name}."
        )
    if kind < 0.35:
        hello, name = pick(source, _HELLO), pick(source, NAMES)
        phrase = pick(
            source, ("I am {n}.", "My name is {n}.", "This is {n}.", "{n} here.", "You can call me {n}.")
        )
        text = f"{hello}{pick(source, (', ', '. ', '! '))}{phrase.format(n=name)}"
        return question("small talk", text, f"Hello {name}, nice to meet you.", f"The user is {name}.")
    said = pick(source, tuple(_TALK))
    opening = pick(source, ("", *(f"{hello}{mark}" for hello in _HELLO for mark in (", ", "! "))))
    closing = pick(source, ("", "", " nano", " my friend", " dear assistant"))
    text = f"{opening}{said[:-1]}{',' if closing else ''}{closing}{said[-1]}"
    return question("small talk", vary(source, text), _TALK[said], "This is small talk.")


def remember_name(source: random.Random) -> Unit:
    """A name given earlier in the conversation or in the system message."""
    name, thinking = pick(source, NAMES), "Look for the name."
    if source.random() < 0.35:
        text = pick(
            source, ("What is your name?", "Who are you?", "Tell me your name.", "What are you called?")
        )
        system = pick(source, (
            "You are {n}, a helpful assistant.", "Your name is {n}.", "You are an assistant called {n}.",
            "Your name is {n}. You help at home.",
        )).format(n=name)  # fmt: skip
        opening = pick(source, ("", "Hello, ", "Hi, ", "Excuse me, ", "Hey, ", "Please, "))
        text = opening + text
        key = f"{normalize(system)} -> {normalize(text)}"
        return question("names", vary(source, text), f"My name is {name}.", thinking, key=key, system=system)
    hello = pick(source, _HELLO)
    first = f"{hello}, {pick(source, ('I am {n}.', 'my name is {n}.', 'this is {n}.')).format(n=name)}"
    text = vary(source, pick(source, (
        "What is my name?", "Who am I?", "Do you know my name?", "Tell me my name.",
        "What did I say my name was?",
    )))  # fmt: skip
    messages: tuple[Message, ...] = (
        {"role": "user", "content": first},
        {"role": "assistant", "content": f"Hello {name}, nice to meet you."},
        {"role": "user", "content": text},
    )
    keys = (normalize(first), f"{normalize(first)} -> {normalize(text)}")
    return Unit("names", messages, f"Your name is {name}.", thinking, keys)


_CAPITAL_WORDS = {
    "German": (("Was ist die Hauptstadt von {c}?", "Wie heißt die Hauptstadt von {c}?",
    "Nenne die Hauptstadt von {c}."),
               "Die Hauptstadt von {c} ist {p}."),
    "Spanish": (("¿Cuál es la capital de {c}?", "¿Cómo se llama la capital de {c}?",
    "Dime la capital de {c}."),
                "La capital de {c} es {p}."),
    "Chinese": (("{c}的首都是哪里？", "{c}的首都在哪里？", "请告诉我{c}的首都。"), "{c}的首都是{p}。"),
}  # fmt: skip
_CAPITAL_NAMES = {
    "German": {"Frankreich": "Paris", "Österreich": "Wien", "Italien": "Rom", "Dänemark": "Kopenhagen",
               "Griechenland": "Athen", "Japan": "Tokio", "Ägypten": "Kairo", "Polen": "Warschau"},
    "Spanish": {"Francia": "París", "España": "Madrid", "Japón": "Tokio", "Perú": "Lima",
    "Alemania": "Berlín",
                "Egipto": "El Cairo", "Grecia": "Atenas", "México": "Ciudad de México"},
    "Chinese": {"法国": "巴黎", "德国": "柏林", "中国": "北京", "日本": "东京", "英国": "伦敦",
    "意大利": "罗马",
                "俄罗斯": "莫斯科", "西班牙": "马德里"},
}  # fmt: skip
_GREETING_WORDS = {
    "German": (("Hallo", "Guten Tag", "Guten Morgen", "Guten Abend", "Grüß dich"), ", ",
               (("wie geht es dir?", "Mir geht es gut, danke."), ("wer bist du?", "Ich heiße nano."),
                ("wie heißt du?", "Ich heiße nano."), ("ich bin müde.", "Dann schlaf schön."),
                ("danke schön.", "Gern geschehen."), ("tschüss.", "Auf Wiedersehen, bis später."))),
    "Spanish": (("Hola", "Buenos días", "Buenas tardes", "Buenas noches", "Saludos"), ", ",
                (("¿cómo estás?", "Estoy muy bien, gracias."), ("¿quién eres?", "Me llamo nano."),
                 ("¿cómo te llamas?", "Me llamo nano."), ("tengo sueño.",
                 "Duerme bien, mañana será otro día."),
                 ("muchas gracias.", "De nada."), ("adiós.", "¡Hasta mañana!"))),
    "Chinese": (("你好", "您好", "早上好", "晚上好", "大家好"), "，",
                (("你好吗？", "我很好，谢谢。"), ("你是谁？", "我叫nano。"), ("你叫什么名字？", "我叫nano。"),
                 ("我累了。", "请好好休息。"), ("谢谢你。", "不客气。"), ("再见。", "再见，祝你愉快！"))),
}  # fmt: skip
_NOTES = {
    "German": "Die Frage ist deutsch.",
    "Spanish": "La pregunta está en español.",
    "Chinese": "这是中文问题。",
}


def other_language(source: random.Random) -> Unit:
    """A greeting or a capital in German, Spanish or Chinese, answered in the same language."""
    language = pick(source, tuple(_NOTES))
    hellos, comma, talk = _GREETING_WORDS[language]
    hello = pick(source, hellos)
    if source.random() < 0.5:
        texts, template = _CAPITAL_WORDS[language]
        country = pick(source, tuple(_CAPITAL_NAMES[language]))
        text = pick(source, texts).format(c=country)
        text = text if source.random() < 0.4 else f"{hello}! {text}"
        answer = template.format(c=country, p=_CAPITAL_NAMES[language][country])
    else:
        said, answer = pick(source, talk)
        name = pick(source, ("", "", " nano"))
        text = f"{hello}{name}{pick(source, (comma, '! '))}{said}"
    return question("languages", text, answer, _NOTES[language])
