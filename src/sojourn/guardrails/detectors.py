"""What looks like a person's data, or like a secret: named detectors, each a function from a text to places in it.

`judging` calls them. The rule: a checksum decides where there is one, and every detector takes a time that is linear in
the text.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sojourn.guardrails.rules import Pii, compiled

Span = tuple[int, int]
Detector = Callable[[str], Iterator[Span]]

CARD_DIGITS = range(13, 20)
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18,
    "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24,
    "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24,
    "XK": 20,
}  # fmt: skip
"""Source: SWIFT's IBAN registry, release 99."""
ENTROPY_BITS = 3.0
"""A character of a password or a token carries more than this; one of words carries less, or they are short."""

_EMAIL = compiled(r"[A-Za-z0-9._%+\-]+@[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)*\.[A-Za-z]{2,}")
_PHONE = compiled(
    r"(?:\+|\b00)[1-9](?:[ ().\-/]{0,2}\d){7,14}\b|\(\d{3}\) ?\d{3}[ .\-]\d{4}\b|\b\d{3}[ .\-]\d{3}[ .\-]\d{4}\b"
)
# Python's own engine is quicker at many short matches, and has nothing to go back to in these.
_DIGITS = re.compile(r"[0-9]+(?:[ .\-]{1,3}[0-9]+)*")
_GROUP = re.compile(r"[0-9]+")
_IBAN = re.compile(r"\b[A-Za-z]{2}[0-9]{2}", re.ASCII)
_SECRET = compiled(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[A-Za-z0-9+/=\s:,]|-[A-Za-z0-9])*(?:-----END [A-Z ]*-----)?"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_\-]{20,}"
    r"|\bxox[abeoprs]-[A-Za-z0-9\-]{10,}"
    r"|\b(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_\-]{20,}"
    r"|\bAIza[A-Za-z0-9_\-]{35}|\bya29\.[A-Za-z0-9_\-]{20,}"
    r"|\bnpm_[A-Za-z0-9]{36}|\bpypi-AgEI[A-Za-z0-9_\-]{20,}|\bhf_[A-Za-z0-9]{30,}|\bwhsec_[A-Za-z0-9+/=]{20,}"
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"
)
_MARKED = compiled(
    r"(?i)(?:password|passwd|passphrase|secret|token|api[_ \-]?key|access[_ \-]?key|private[_ \-]?key|credential)s?"
    r"[\"']?\s*(?:[:=]|\bis\b)\s*[\"']?([^\s\"',;]{10,})"
)


def spans(pattern: Any, text: str, offset: int = 0) -> Iterator[Span]:
    """The places that a pattern fits, in what the text was cut out of at `offset`."""
    return ((found.start() + offset, found.end() + offset) for found in pattern.finditer(text))


def cards(text: str) -> Iterator[Span]:
    """Runs of whole groups of digits that are as long as a card's number and pass its check digit."""
    for start, end in spans(_DIGITS, text):
        if end - start < min(CARD_DIGITS):
            continue
        groups = list(spans(_GROUP, text[start:end], start))
        for first in range(len(groups)):
            found = _card(text, groups[first : first + max(CARD_DIGITS)])
            if found is not None:
                yield found


def _card(text: str, groups: list[Span]) -> Span | None:
    digits = ""
    for start, end in groups:
        digits += text[start:end]
        if len(digits) in CARD_DIGITS and digits[0] in "23456" and _luhn(digits):
            return groups[0][0], end
        if len(digits) >= max(CARD_DIGITS):
            break
    return None


def _luhn(digits: str) -> bool:
    """Source: ISO/IEC 7812-1, annex B."""
    total = sum(map(int, digits[-1::-2])) + sum(sum(divmod(2 * int(one), 10)) for one in digits[-2::-2])
    return total % 10 == 0 and len(set(digits)) > 1


def ibans(text: str) -> Iterator[Span]:
    """What begins as an IBAN of its country, as long as those of its country are, where the checksum is right."""
    for start, _ in spans(_IBAN, text):
        length, found = IBAN_LENGTHS.get(text[start : start + 2].upper(), 0), ""
        for place in range(start, min(len(text), start + 2 * length)):
            if text[place] in " -" and text[place - 1] not in " -":
                continue
            if not (text[place].isascii() and text[place].isalnum()):
                break
            found += text[place].upper()
            if len(found) == length:
                if _mod_97(found):
                    yield start, place + 1
                break


def _mod_97(iban: str) -> bool:
    """Source: ISO 13616-1: letters are numbers from 10, the first four characters go to the end."""
    return int("".join(str(int(one, 36)) for one in iban[4:] + iban[:4])) % 97 == 1


def secrets(text: str) -> Iterator[Span]:
    """Keys of well-known shapes, and what stands after a word like `password` and looks random."""
    yield from spans(_SECRET, text)
    for found in _MARKED.finditer(text):
        if _entropy(found.group(1)[:200]) >= ENTROPY_BITS:
            yield found.span(1)


def _entropy(text: str) -> float:
    """Bits a character, by how often each comes."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


PERSONAL: Mapping[Pii, Detector] = {
    "email": lambda text: spans(_EMAIL, text),
    "phone": lambda text: spans(_PHONE, text),
    "card": cards,
    "iban": ibans,
}
