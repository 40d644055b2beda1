"""What a request to /v1/chat/completions may hold, as strictly as the protocol's own endpoint takes it."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterator
from typing import Any

from PIL import Image, UnidentifiedImageError

NUMBERS = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
COUNTS = ("max_tokens", "max_completion_tokens", "n")
OTHERS = {"model", "messages", "response_format", "stream", "seed", "stop", "user", "reasoning_effort"}
ROLES = ("system", "developer", "user", "assistant")
DETAILS = ("low", "high", "auto")
IMAGE_TYPES = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}


class ProtocolError(ValueError):
    """What is wrong with a request, in words for the client."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ProtocolError(message)


def check_request(content: bytes, content_type: str) -> dict[str, Any]:
    """The JSON body of a request that follows the protocol. Raises ProtocolError for any other."""
    require(content_type.split(";")[0].strip() == "application/json", f"Content-Type is {content_type!r}.")
    try:
        body = json.loads(content)
    except ValueError:
        raise ProtocolError("We could not parse the JSON body of your request.") from None
    require(isinstance(body, dict), "The body must be an object.")
    unknown = sorted(body.keys() - OTHERS - NUMBERS.keys() - set(COUNTS))
    require(not unknown, f"Unrecognized request arguments: {', '.join(unknown)}")
    require(isinstance(body.get("model"), str) and body["model"] != "", "You must provide a model parameter.")
    require(body.get("stream") in (None, False), "This endpoint does not stream.")
    check_numbers(body)
    check_response_format(body.get("response_format"))
    messages = body.get("messages")
    require(isinstance(messages, list) and messages != [], "'messages' must be a list with at least one message.")
    for message in messages:
        check_message(message)
    return body


def check_numbers(body: dict[str, Any]) -> None:
    for name, (low, high) in NUMBERS.items():
        value = body.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(value is None or (number and low <= value <= high), f"Invalid '{name}': {value!r}.")
    for name in COUNTS:
        value = body.get(name)
        count = isinstance(value, int) and not isinstance(value, bool)
        require(value is None or (count and value >= 1), f"Invalid '{name}': {value!r}.")


def check_response_format(value: Any) -> None:
    if value is None:
        return
    require(isinstance(value, dict), "'response_format' must be an object.")
    kind = value.get("type")
    require(kind in ("text", "json_object", "json_schema"), f"Invalid 'response_format.type': {kind!r}.")
    if kind != "json_schema":
        return
    schema = value.get("json_schema")
    require(isinstance(schema, dict), "Missing 'response_format.json_schema'.")
    require(isinstance(schema.get("name"), str), "Missing 'response_format.json_schema.name'.")
    require(isinstance(schema.get("schema"), dict), "Missing 'response_format.json_schema.schema'.")
    if schema.get("strict"):
        check_strict(schema["schema"])


def check_strict(schema: dict[str, Any]) -> None:
    """Strict structured output wants every property required and no others allowed."""
    require(schema.get("type") == "object", "A strict schema must be of type object.")
    require(schema.get("additionalProperties") is False, "A strict schema needs 'additionalProperties': false.")
    required = sorted(schema.get("required", []))
    require(required == sorted(schema.get("properties", {})), "A strict schema must require every property.")


def check_message(message: Any) -> None:
    require(isinstance(message, dict), "A message must be an object.")
    require(message.get("role") in ROLES, f"Invalid role: {message.get('role')!r}.")
    content = message.get("content")
    require(isinstance(content, str) or (isinstance(content, list) and content != []), "Missing message content.")
    if isinstance(content, list):
        for part in content:
            check_part(part, message["role"])


def check_part(part: Any, role: str) -> None:
    require(isinstance(part, dict), "A content part must be an object.")
    if part.get("type") == "text":
        require(isinstance(part.get("text"), str), "A text part needs 'text'.")
        return
    require(part.get("type") == "image_url", f"Invalid content part type: {part.get('type')!r}.")
    require(role == "user", f"Images are for the user role, not {role}.")
    image = part.get("image_url")
    require(isinstance(image, dict) and isinstance(image.get("url"), str), "'image_url' needs a 'url'.")
    require(image.get("detail", "auto") in DETAILS, f"Invalid image detail: {image.get('detail')!r}.")


def parts(body: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    for message in body["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == kind:
                yield part


def read_texts(body: dict[str, Any]) -> list[str]:
    """The texts of a checked request, in order."""
    return [part["text"] for part in parts(body, "text")]


def read_images(body: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a checked request, decoded from their data URLs, in order."""
    return [decode(part["image_url"]["url"]) for part in parts(body, "image_url")]


def decode(url: str) -> Image.Image:
    header, comma, payload = url.partition(",")
    require(header.startswith("data:") and comma == ",", "Only data URLs are taken here.")
    media_type, _, encoding = header.removeprefix("data:").partition(";")
    require(media_type in IMAGE_TYPES and encoding == "base64", f"Unsupported image: {header}.")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))
        image.load()
    except (binascii.Error, UnidentifiedImageError, OSError):
        raise ProtocolError("You uploaded an unsupported image.") from None
    require(image.format == IMAGE_TYPES[media_type], f"The image is {image.format}, not {media_type}.")
    return image
