"""Embeddings of engines that speak OpenAI's own format, as they go to the client.

As many vectors as there were inputs, in their order, packed as asked, with usage. What is so already is not written
anew but for the model id. Knows the format, but no engine.
"""

from __future__ import annotations

import msgspec

from flm.engines.base import UpstreamRequest
from flm.engines.call import Call, Change
from flm.engines.passed import PassedAnswer, Top, fields_of, is_array, items_of, says_something
from flm.engines.refusals import unreadable
from flm.errors import UpstreamProtocolError
from flm.wire.chat import BRACKET, MALFORMED, QUOTE, first_byte
from flm.wire.embeddings import EmbeddingParameters, array_vector, base64_vector, check_dimensions

Raw = msgspec.Raw

_encoder = msgspec.json.Encoder()


class PassedVectors(PassedAnswer):
    """Embeddings: as many vectors as there were inputs, in their order, packed as asked."""

    long_field = "input"

    def __init__(
        self,
        request: UpstreamRequest,
        changes: tuple[Change, ...],
        call: Call,
        wanted: EmbeddingParameters,
        count: int,
    ) -> None:
        super().__init__(request, changes, call)
        self._wanted = wanted
        self._count = count

    def _mended(self, body: bytes, top: Top) -> dict[str, Raw] | None:
        if not is_array(top.data):
            raise unreadable("an embedding answer", body)
        try:
            items = items_of.decode(top.data)  # type: ignore[arg-type]  # an array, as seen above
            altered = [self._pack(item) for item in items]
            self._check_sizes(items)
            altered.append(self._sort(items))
        except (*MALFORMED, KeyError, ValueError):
            raise unreadable("an embedding answer", body) from None
        if not any(altered) and says_something(top.usage):
            return None
        fields = fields_of.decode(body)
        fields["data"] = Raw(_encoder.encode(items))
        if not says_something(top.usage):
            fields["usage"] = _NO_USAGE
        return fields

    def _pack(self, item: dict[str, Raw]) -> bool:
        """Bring one vector into the format asked for; whether it was in another."""
        first = first_byte(item["embedding"])
        if first == BRACKET and self._wanted.encoding_format == "base64":
            item["embedding"] = base64_vector(item["embedding"])
        elif first == QUOTE and self._wanted.encoding_format != "base64":
            item["embedding"] = array_vector(item["embedding"])
        elif first not in (BRACKET, QUOTE):
            raise ValueError("neither an array nor base64")
        else:
            return False
        return True

    def _check_sizes(self, items: list[dict[str, Raw]]) -> None:
        wanted = self._wanted.dimensions
        if wanted is not None:
            check_dimensions(wanted, [item["embedding"] for item in items])

    def _sort(self, items: list[dict[str, Raw]]) -> bool:
        """Put the vectors in the order of the inputs; whether they were not, or not numbered."""
        if len(items) != self._count:
            raise UpstreamProtocolError(f"the engine sent {len(items)} vectors for {self._count} inputs")
        numbered = [item for item in items if "index" in item]
        if not numbered:
            for position, item in enumerate(items):
                item["index"] = Raw(b"%d" % position)
            return True
        order = [_index.decode(item["index"]) for item in items]
        if order == list(range(self._count)):
            return False
        if sorted(order) != list(range(self._count)):
            raise UpstreamProtocolError("the engine did not number its vectors as the inputs")
        items.sort(key=lambda item: _index.decode(item["index"]))
        return True


_index = msgspec.json.Decoder(int)
_NO_USAGE = Raw(b'{"prompt_tokens":0,"total_tokens":0}')
