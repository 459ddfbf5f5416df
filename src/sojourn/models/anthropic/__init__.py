"""Anthropic messages, and the servers that speak them."""

from sojourn.models.anthropic.reply import MessagesReply
from sojourn.models.anthropic.request import body, headers
from sojourn.models.dialect import Dialect

ANTHROPIC = Dialect("anthropic", "messages", headers, body, MessagesReply)
