"""How deep, how long and how slow policies may be, found out without parsing them.

`cedar` asks before Cedar reads them. The rule: brackets, strings and comments are told apart exactly as Cedar's lexer
does, for its parser recurses without a limit: 2 KB of open brackets end the process on a stack of 8 MiB.
Source: cedar-policy/cedar#2383, still open in November 2026.
"""

import re

POLICIES_CHARS_MAX = 8_192
NESTED_MAX = 16
"""Brackets within brackets. 50 of them need 512 KiB of stack in cedarpy 4.12."""
STEPS_MAX = 200
"""Dots and ifs of one policy: Cedar nests them, and `has a.b.c` takes a time that is their square."""
LIKE_CHARS_MAX = 500
"""Patterns of `like`, together: a match takes up to 3 ns for each of their characters and each of the text's."""

_TOKEN = re.compile(
    r'//[^\n\r]*|"(?:\\[^\n\r]|[^"\\])*"|["()\[\]{};.]|(?<![A-Za-z_])(?:if|like)(?![A-Za-z0-9_])', re.ASCII
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def statements(text: str) -> list[str]:
    """The policies one by one. Raises ValueError for what must not be parsed."""
    if len(text) > POLICIES_CHARS_MAX:
        raise ValueError(f"the policies have {len(text)} characters, and may have {POLICIES_CHARS_MAX}")
    found, start, steps, like_chars, is_pattern = list[str](), 0, 0, 0, False
    open_: list[str] = []
    for token in _TOKEN.finditer(text):
        match token[0]:
            case '"':
                raise ValueError(f"{_line(text, token.start())}: a string does not end")
            case "(" | "[" | "{" as bracket:
                open_.append(_CLOSING[bracket])
            case ")" | "]" | "}" as bracket:
                if not open_ or open_.pop() != bracket:
                    raise ValueError(f"{_line(text, token.start())}: `{bracket}` closes nothing")
            case "." | "if":
                steps += 1
            case "like":
                is_pattern = True
            case ";" if not open_:
                found.append(text[start : token.end()])
                start, steps = token.end(), 0
            case string if string.startswith('"'):
                like_chars, is_pattern = like_chars + is_pattern * len(string), False
        _bounded(len(open_), steps, like_chars, where=_line(text, token.start()))
    return [*found, text[start:]]


def _bounded(nested: int, steps: int, like_chars: int, *, where: str) -> None:
    if nested > NESTED_MAX:
        raise ValueError(f"{where}: brackets are nested more than {NESTED_MAX} deep")
    if steps > STEPS_MAX:
        raise ValueError(f"{where}: a policy has more than {STEPS_MAX} dots and ifs; make two of it")
    if like_chars > LIKE_CHARS_MAX:
        raise ValueError(f"{where}: the patterns of `like` have more than {LIKE_CHARS_MAX} characters together")


def _line(text: str, place: int) -> str:
    return f"line {text.count(chr(10), 0, place) + 1}"
