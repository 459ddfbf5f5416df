"""A monotonic clock that a test moves by hand."""


class HandClock:
    """Says `now_s` whenever it is asked."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s
