"""Secrets stay out of what is written and printed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "<redacted>"
SECRET = re.compile(r"token|key|secret|password", re.IGNORECASE)
HARMLESS = re.compile(r"tokeni[sz]er|(^|_)(pad|mask|bos|eos|cls|sep|unk)_token", re.IGNORECASE)
CHOICES = "choices"
"""Names of options, under the names of groups: no secrets there."""

SHORTEST = 8
"""Values of environment variables shorter than this are words that a text may hold by chance."""


def is_secret(key: str) -> bool:
    """Whether a key's text is a secret: ``hf_token`` and ``api_key`` are, ``tokenizer`` and ``mask_token`` are not."""
    return bool(SECRET.search(key)) and not HARMLESS.search(key)


def redact(node: Any) -> Any:
    """Plain containers with the texts under secret keys replaced; numbers and interpolations stay as they are."""
    if isinstance(node, Mapping):
        return {key: value if key == CHOICES else _redact_under(str(key), value) for key, value in node.items()}
    if isinstance(node, list):
        return [redact(value) for value in node]
    return scrub(node) if isinstance(node, str) else node


def _redact_under(key: str, value: Any) -> Any:
    if is_secret(key) and isinstance(value, str) and not value.startswith("${"):
        return REDACTED
    if is_secret(key) and isinstance(value, list):
        return [_redact_under(key, item) for item in value]
    return redact(value)


def redact_override(line: str) -> str:
    """``key=value`` with the value replaced where the key is that of a secret."""
    key, equals, value = line.partition("=")
    secret = equals and is_secret(key.rpartition(".")[2]) and not value.startswith("${")
    return f"{key}={REDACTED}" if secret else scrub(line)


def scrub(text: str) -> str:
    """``text`` without the values of environment variables whose names are those of secrets."""
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= SHORTEST and value in text:
            text = text.replace(value, REDACTED)
    return text
