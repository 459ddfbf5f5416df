"""What a person sees of what was sent to a terminal."""

import re


def without_style(text: str) -> str:
    """Take the colours out, and nothing else."""
    for code in ("0", "1", "2", "31", "32", "33", "36"):
        text = text.replace(f"\x1b[{code}m", "")
    return text


def screen(text: str) -> list[str]:
    """What stands on a terminal that was sent this: lines, with those gone that were taken back."""
    lines, row = [""], 0
    for piece in re.split(r"(\x1b\[\d*[FJ]|\n)", without_style(text)):
        if piece == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif piece == "\x1b[J":
            lines[row:] = [""]
        elif piece.startswith("\x1b["):
            row -= int(piece[2:-1])
        else:
            lines[row] += piece
    return lines[:-1] if lines[-1] == "" else lines
