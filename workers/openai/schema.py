"""Whether a server holds its answer to the JSON schema that it was sent. Pure.

Not all do: ``transformers serve`` ignores ``response_format`` and says so only in its log. A
program that reads the answer would break on it.
"""

from __future__ import annotations

import json

from shammah.errors import ShammahError

_BEGINNINGS = '{["-0123456789tfn'


class SchemaCheck:
    """For one answer.

    Args:
        subject: the server, as a sentence begins with it.
        schema: as JSON; empty: anything goes.
        begun: how much of the answer there is already.
    """

    def __init__(self, subject: str, schema: str, begun: str) -> None:
        self._subject = subject
        self._held = bool(schema)
        self._text = begun

    def add(self, text: str) -> None:
        """Judge ``text``, which comes next, before anybody sees it.

        Raises:
            ShammahError: ``schema_not_enforced``: the answer does not begin like JSON.
        """
        if not self._held:
            return
        self._text += text
        if self._text.lstrip()[:1] not in _BEGINNINGS:
            raise ShammahError(
                "schema_not_enforced",
                f"{self._subject} ignored the JSON schema.",
                "Use a server that holds answers to one, as vLLM, SGLang and llama-server do.",
            )

    def finish(self, finish_reason: str) -> None:
        """Judge the whole answer, if it ended by itself.

        Raises:
            ShammahError: ``schema_unmet``: it is not JSON. Others could not go on with it.
        """
        if not self._held or finish_reason != "stop":
            return
        try:
            json.loads(self._text)
        except ValueError:
            raise ShammahError(
                "schema_unmet",
                f"{self._subject} did not keep to the JSON schema.",
                "Use a server that holds answers to one, as vLLM, SGLang and llama-server do.",
            ) from None
