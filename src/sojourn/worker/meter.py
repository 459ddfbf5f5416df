"""What one attempt at a model call has used so far: what it is billed with, should it give no reply.

`perform.py` and `asking.py` tell it what they send and hear, `drive.py` asks it. The rules: what the provider counted
comes before any estimate, and what was never sent, or was refused, costs nothing.
"""

from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from sojourn.loop.budget import Bill, Pin
from sojourn.loop.effects import CallModel
from sojourn.loop.events import CallLost, ModelLost
from sojourn.loop.messages import Message, Usage
from sojourn.models.estimate import SEEN_BYTES_PER_TOKEN, prompt_tokens
from sojourn.models.model import Delta, ModelFailed, Request

Asked = tuple[str, int, int]
"""An attempt at a model call: frame, step, number."""


class Meter:
    """One attempt. It may make several requests, one after the other: for notes, for the reply, a shorter one again."""

    def __init__(self, call: CallModel) -> None:
        self.call = call
        self.owed: list[Usage] = []
        """What summaries took that are whole and not in the journal yet."""
        self._sent = self._whole = False
        self._asked: Request | None = None
        """What was asked, until its prompt is estimated or counted."""
        self._told = Usage()
        """The provider's last count, or the estimate of the prompt while there is none."""
        self._bytes = 0
        """What was seen of the reply since then."""

    def begin(self, request: Request, may_send: Callable[[], None]) -> Callable[[], None]:
        """Begin another request; give what is to be called when it is sent, in the place of `may_send`."""
        self._sent = self._whole = False
        self._asked, self._bytes = request, 0
        if request.blobs:
            self._estimate()  # so that nothing holds the images and files once they are sent

        def send() -> None:
            may_send()
            self._sent = True

        return send

    def told(self, usage: Usage) -> None:
        """Hear a count of the provider's."""
        self._sent, self._asked, self._told, self._bytes = True, None, usage, 0

    def hear(self, item: Delta | Message) -> None:
        """Hear a piece of the reply, or all of it."""
        if isinstance(item, Message):
            if item.usage is not None:
                self.told(item.usage)
                self._whole = True
        else:
            self._sent, text = True, item.text
            self._bytes += len(text) if text.isascii() else len(text.encode(errors="replace"))

    def failed(self, error: Exception) -> None:
        """Hear that the request failed; one that the provider refused costs nothing."""
        if isinstance(error, ModelFailed) and error.refused:
            self._sent = False

    @property
    def usage(self) -> Usage:
        """What the request that is on its way has used, as far as is known."""
        self._estimate()
        return replace(self._told, output=self._told.output + self._bytes // SEEN_BYTES_PER_TOKEN)

    def _estimate(self) -> None:
        if self._asked is not None:
            self._asked, self._told = None, Usage(input=prompt_tokens(self._asked))

    def bill(self) -> Bill | None:
        """What the request cost; None where it cost nothing."""
        return self._billed(self.usage) if self._sent else None

    def close(self) -> Bill | None:
        """End a request for a summary, and give what it cost: it is owed until the journal has it."""
        bill, self._sent = self.bill(), False
        self.owed += [bill.usage] if bill else []
        return bill

    def cut(self) -> Bill | None:
        """What the attempt cost, as it is given up: the request, and summaries that nobody paid for."""
        return self._billed(*([self.usage] if self._sent else []), *self.owed)

    def _billed(self, *used: Usage) -> Bill | None:
        if not used:
            return None
        tariff = self.call.tariff
        return Bill(
            model=self.call.model,
            usage=sum(used, Usage()),
            usd_micros=sum(map(tariff.cost_micros, used)) if tariff else None,
            estimated=self._sent and not self._whole,
        )


def seen(lost: ModelLost | CallLost, streamed: Mapping[Asked, int], prices: Iterable[Pin]) -> ModelLost | CallLost:
    """What a dead worker left, with what readers saw of a reply (bytes by attempt) in the bill."""
    if isinstance(lost, CallLost) or lost.bill is None:
        return lost
    bytes_seen, bill = streamed.get((lost.frame, lost.step, lost.attempt), 0), lost.bill
    used = replace(bill.usage, output=bill.usage.output + bytes_seen // SEEN_BYTES_PER_TOKEN)
    tariff = next((pin.tariff for pin in prices if pin.model == bill.model), None)
    return replace(lost, bill=replace(bill, usage=used, usd_micros=tariff.cost_micros(used) if tariff else None))
