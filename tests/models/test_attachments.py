"""Images and files on their way to both endpoints, which look at them: the simulator refuses what they would."""

import base64
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from pictures import GIF, JPEG, PDF, PNG, WEBP
from simulator_client import saying, simulated
from tests.installation import installed

from sojourn.loop.messages import File, Image, Message, said
from sojourn.models.attachments import attachments
from sojourn.models.endpoints import Endpoints
from sojourn.models.model import Endpoint, ModelFailed, Request
from sojourn.models.simulator import Call, Rule, Script, Simulator, Status, When

PROVIDERS = ("openai", "anthropic")
BLOBS = {"sha256:png": PNG, "sha256:jpeg": JPEG, "sha256:gif": GIF, "sha256:webp": WEBP, "sha256:pdf": PDF}
PICTURES = [Image(blob=f"sha256:{kind}", media_type=f"image/{kind}") for kind in ("png", "jpeg", "gif", "webp")]
REPORT = File(blob="sha256:pdf", media_type="application/pdf", name="r.pdf")


async def look(sim: Simulator, provider: str, *messages: Message, blobs: dict[str, bytes] = BLOBS) -> str:
    """Ask a model what it sees."""
    urls = {"openai": sim.openai_url, "anthropic": sim.url}
    models = Endpoints([Endpoint(name=provider, dialect=provider, base_url=urls[provider], keys=("k",))])  # type: ignore[arg-type]
    model, name = models.resolve(f"{provider}:m")
    held = {digest: blobs[digest] for digest in attachments(messages) if digest in blobs}
    request = Request(model=name, system="", messages=messages, blobs=held)
    try:
        async with aclosing(model.stream(request, message_id="r1")) as stream:  # type: ignore[type-var]
            return [item async for item in stream][-1].text  # type: ignore[union-attr]
    finally:
        await models.close()


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_model_sees_every_kind_of_picture_and_reads_a_pdf(provider: str) -> None:
    async with Simulator(saying("{{attachments}}")) as sim:
        seen = await look(sim, provider, said("u1", "Look.", *PICTURES), said("u2", "", REPORT))
    kinds = ["image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"]
    sizes = [len(data) for data in BLOBS.values()]
    assert [line.split(" sha256:")[0] for line in seen.splitlines()] == [
        f"{kind} {size} bytes" for kind, size in zip(kinds, sizes, strict=True)
    ]


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_model_is_told_what_is_gone_and_sees_the_rest(provider: str) -> None:
    async with Simulator(saying("{{last_user}}|{{attachments}}")) as sim:
        seen = await look(sim, provider, said("u1", "Look.", *PICTURES[:2]), blobs={"sha256:jpeg": JPEG})
    words, _, pictures = seen.partition("|")
    assert words == "Look.[The image sha256:png (image/png) is not kept here any more and cannot be shown.]"
    assert pictures.startswith("image/jpeg") and "\n" not in pictures


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("part", [PICTURES[0], REPORT], ids=["picture", "pdf"])
async def test_a_provider_that_cannot_read_an_attachment_fails_the_call_for_good(provider: str, part: Any) -> None:
    async with Simulator(saying("seen")) as sim:
        with pytest.raises(ModelFailed) as caught:
            await look(sim, provider, said("u1", "Look.", part), blobs={part.blob: b"neither"})
    assert (caught.value.code, caught.value.retry) == ("model.media_type", False)
    assert "use another model" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"),
        (404, "No endpoints found that support image input"),
        (400, "Invalid content type. image_url is only supported by certain models."),
        (400, "At most 0 image(s) may be provided in one prompt."),
        (400, "tiny-1b is not a multimodal model"),
    ],
)
async def test_a_model_without_eyes_is_named_as_such(status: int, words: str) -> None:
    async with Simulator(Script(faults=(Status(status=status, message=words),))) as sim:
        with pytest.raises(ModelFailed) as caught:
            await look(sim, "openai", said("u1", "Look.", PICTURES[0]))
    assert (caught.value.code, caught.value.retry) == ("model.media_type", False)


async def test_a_picture_may_be_too_large_for_one_provider_and_not_for_the_other() -> None:
    large = {"sha256:png": PNG + bytes(5 << 20)}
    async with Simulator(saying("seen")) as sim:
        with pytest.raises(ModelFailed) as caught:
            await look(sim, "anthropic", said("u1", "Look.", PICTURES[0]), blobs=large)
        assert caught.value.code == "model.media_type"
        assert await look(sim, "openai", said("u1", "Look.", PICTURES[0]), blobs=large) == "seen"


async def test_a_run_shows_its_model_what_was_kept_for_it(data_dir: Path) -> None:
    look = Rule(when=When(step=0), calls=(Call("list_files", {}),))
    async with installed(data_dir, Script(rules=(look, Rule(text="{{attachments}}")))) as installation:
        parts: list[dict[str, Any]] = [{"type": "text", "text": "Look."}]
        for kind, media_type, data in (("image", "image/png", PNG), ("file", "application/pdf", PDF)):
            async with installation.http.post("/v1/blobs", data=data, headers={"Content-Type": media_type}) as kept:
                parts.append({"type": kind, "blob": (await kept.json())["digest"]})
        for provider in PROVIDERS:
            agent = {"model": f"{provider}:m", "tools": ["list_files"]}
            run = await installation.until(await installation.run(agent=agent, input=parts))
            assert [line.partition(" ")[0] for line in run["output"].splitlines()] == ["image/png", "application/pdf"]


# ---- the simulator's eyes --------------------------------------------------------------------


def block(media_type: str, data: bytes | str, kind: str = "image") -> dict[str, Any]:
    encoded = data if isinstance(data, str) else base64.b64encode(data).decode()
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": encoded}}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (block("image/tiff", PNG), "image.source.base64.media_type: Input should be 'image/jpeg'"),
        (block("image/png", JPEG), "image.source.base64.data: Could not process image"),
        (block("image/png", "not base64"), "Could not process image"),
        (block("image/png", PDF, "document"), "document.source.base64.media_type: Input should be 'application/pdf'"),
        (block("application/pdf", PNG, "document"), "The PDF specified was not valid."),
    ],
)
async def test_anthropic_refuses_in_its_own_words(wrong: dict[str, Any], words: str) -> None:
    async with simulated(saying("x")) as client:
        answer = await client.ask("anthropic", [{"role": "user", "content": [wrong]}])
    assert answer.status == 400
    assert words in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "invalid_image_format"),
        ({"type": "image_url", "image_url": {"url": "data:application/pdf;base64,JVBERi0="}}, "invalid_image_format"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "invalid_image_format"),
        ({"type": "file", "file": {"file_data": "data:image/png;base64,AAAA"}}, "invalid_value"),
    ],
)
async def test_openai_refuses_in_its_own_words(part: dict[str, Any], code: str) -> None:
    async with simulated(saying("x")) as client:
        answer = await client.ask("openai", [{"role": "user", "content": [part]}])
    assert (answer.status, answer.json["error"]["code"]) == (400, code)


async def test_a_picture_may_be_a_url() -> None:
    url = "https://example.com/cat.png"
    async with simulated(saying("{{attachments}}")) as client:
        openai = await client.ask(
            "openai", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        )
        source = {"type": "url", "url": url}
        anthropic = await client.ask("anthropic", [{"role": "user", "content": [{"type": "image", "source": source}]}])
    assert openai.text == anthropic.text == url
