"""One place of the tree: how deep it is, and the tree with it changed, where all else stays the same object."""

from collections.abc import Callable

from msgspec.structs import replace

from sojourn.loop.continuation import Call, Frame


def depth(id: str) -> int:
    """Count the frames above the one of that id, which a sub-agent's has from its call."""
    return id.rstrip("/").count("/")


def at_frame(root: Frame, id: str, change: Callable[[Frame], Frame | None]) -> Frame | None:
    """The tree with one frame changed; None where there is no such frame or `change` says None."""
    if root.id == id:
        return change(root)
    for call in root.calls:
        if call.child is not None and (id == call.uid or id.startswith(f"{call.uid}/")):
            child = at_frame(call.child, id, change)
            return put(root, replace(call, child=child)) if child else None
    return None


def at_call(root: Frame, uid: str, change: Callable[[Frame, Call], Call | None]) -> Frame | None:
    """The tree with one call changed; None where there is no such call or `change` says None."""

    def visit(frame: Frame, call: Call) -> Frame | None:
        changed = change(frame, call)
        return put(frame, changed) if changed else None

    return with_call(root, uid, visit)


def with_call(root: Frame, uid: str, change: Callable[[Frame, Call], Frame | None]) -> Frame | None:
    """The tree with the frame changed that has the call `uid`; None as for `at_call`."""

    def visit(frame: Frame) -> Frame | None:
        call = next((call for call in frame.calls if call.uid == uid), None)
        return change(frame, call) if call is not None else None

    return at_frame(root, uid.rpartition("/")[0] or "/", visit)


def put(frame: Frame, call: Call) -> Frame:
    """The frame with the call of that uid replaced."""
    return replace(frame, calls=tuple(call if one.uid == call.uid else one for one in frame.calls))
