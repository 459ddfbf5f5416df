"""The OpenAPI document as one page of HTML: no script, nothing from elsewhere. `app` serves it at /docs.

The rule: everything that is shown is escaped, and the page's only style is allowed by its own hash.
"""

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from typing import Any

import msgspec

Json = dict[str, Any]


def style() -> str:
    """The page's style sheet."""
    return files("sojourn.api.reference").joinpath("page.css").read_text()


def policy() -> str:
    """The Content-Security-Policy that lets this page have its style and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def html(document: Json) -> str:
    """Write the page."""
    return "\n".join(_page(document))


def _page(document: Json) -> Iterator[str]:
    info = document["info"]
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(info['title'])} API</title><style>{style()}</style></head><body>"
    yield "<nav>" + "".join(_link(tag["name"]) for tag in document["tags"])
    yield _link("schemas") + _link("scopes") + _link("codes") + "</nav><main>"
    yield f"<h1>{escape(info['title'])} API <small>{escape(info['version'])}</small></h1>"
    yield f'<p>{_text(info["description"])}</p><p><a href="/openapi.json">openapi.json</a></p>'
    for tag in document["tags"]:
        yield f'<h2 id="{tag["name"]}">{escape(tag["name"])}</h2><p>{_text(tag["description"])}</p>'
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation["tags"]:
                    yield from _operation(method, path, operation)
    yield '<h2 id="schemas">schemas</h2>'
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code> '
        yield f"{_text(schema.get('description', ''))}</summary>{_json(schema)}</details>"
    yield '<h2 id="scopes">scopes</h2><dl>'
    for scope, text in document["x-scopes"].items():
        yield f"<dt><code>{escape(scope)}</code></dt><dd>{_text(text)}</dd>"
    yield '</dl><h2 id="codes">codes</h2><dl>'
    for code, about in document["x-codes"].items():
        yield f'<dt id="{escape(code)}"><code>{escape(code)}</code> {about["status"]}</dt>'
        yield f"<dd>{_text(about['title'])}</dd>"
    yield "</dl></main></body></html>"


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    yield f"<details><summary><b class={method}>{method.upper()}</b> <code>{escape(path)}</code> "
    yield f"{_text(operation['summary'])}</summary><p>{_text(operation['description'])}</p>"
    if operation["parameters"]:
        yield "<table>"
        for one in operation["parameters"]:
            yield f"<tr><td><code>{escape(one['name'])}</code></td><td>{one['in']}</td>"
            yield f"<td>{_text(one.get('description', ''))}</td></tr>"
        yield "</table>"
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body: {escape(media)} {_schema(content)}</p>"
        if "example" in content:
            yield _json(content["example"])
    yield "<table>"
    for status, answer in operation["responses"].items():
        shown = " ".join(f"{escape(media)} {_schema(content)}" for media, content in answer.get("content", {}).items())
        yield f"<tr><td>{status}</td><td>{_text(answer['description'])}</td><td>{shown}</td></tr>"
    yield "</table></details>"


def _link(name: str) -> str:
    return f'<a href="#{name}">{name}</a>'


def _schema(content: Json) -> str:
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    return f'<a href="#schema-{escape(name)}">{escape(name)}</a>' if name else ""


def _json(value: Any) -> str:
    return f"<pre>{escape(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())}</pre>"


def _text(text: str) -> str:
    """Prose, with `code` as code."""
    pieces = escape(" ".join(text.split())).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
