"""OpenAI chat completions, and everything that speaks them: llama.cpp, vLLM, Ollama, OpenRouter and many more."""

from sojourn.models.dialect import Dialect
from sojourn.models.openai.reply import ChatReply
from sojourn.models.openai.request import body, headers

OPENAI = Dialect("openai", "chat/completions", headers, body, ChatReply)
