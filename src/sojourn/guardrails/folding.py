"""A text as the eye reads it: without marks that cannot be seen, and with look-alikes as the letters they look like.

`judging` looks at a text both as it is and folded. The rule: every character of the folded text knows which one of the
original it came from, so that what is found in it can be cut out of the original.
"""

import unicodedata
from functools import cache

CYRILLIC = dict(zip("АВЕКМНОРСТХУІЈЅаеорсхуіјѕһԁԛԝ", "ABEKMHOPCTXYIJSaeopcxyijshdqw", strict=True))
GREEK = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧονρικ", "ABEZHIKMNOPTYXovpik", strict=True))
ALIKE = {**CYRILLIC, **GREEK, "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-", "ı": "i", "ɡ": "g"}
"""Letters of other scripts that are drawn like one of ASCII, and dashes."""
UNSEEN = ("Cf", "Cc", "Mn", "Me")
"""Categories that leave no ink of their own, or sit on a letter."""
_LINES = dict.fromkeys(map(ord, "\n\t\r"), " ")
BLANK = "\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800"


@cache
def _letter(character: str) -> str:
    """What one character looks like; nothing where it cannot be seen."""
    if character in "\n\t\r":
        return character
    if unicodedata.category(character) in UNSEEN or character in BLANK:
        return ""
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    parts = unicodedata.normalize("NFKD", ALIKE.get(character, character))
    return "".join(ALIKE.get(one, one) for one in parts if unicodedata.category(one) not in UNSEEN)


def folded(text: str) -> tuple[str, list[int]] | None:
    """The folded text, and the place in the original of each of its characters; None where it is the same."""
    if text.isascii() and text.translate(_LINES).isprintable():
        return None
    letters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        seen = _letter(character)
        letters.append(seen)
        places.extend([place] * len(seen))
    made = "".join(letters)
    return None if made == text else (made, places)
