"""A dialect of an engine that does not exist, as a stranger would write it: this one file, put into flm/engines.

The Parrot says words. `GET /parrot` tells its version, `GET /parrot/birds` who is there; `POST /parrot/speak` gives
lines of JSON, `{"word": …}`, and a last one with `over`; `POST /parrot/measure` gives vectors. Errors are `squawk`.
Knows no other engine, and no test; see test_new_dialect.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from flm.engines.base import DialectDefaults, Identifying, Identity, Listing, Probe, Translation, UpstreamRequest
from flm.engines.call import Call, Change, Endpoint
from flm.engines.capabilities import Act, Rule, Table
from flm.engines.chat_cases import CHAT_CASES
from flm.engines.completion_cases import COMPLETION_CASES
from flm.engines.embedding_cases import EMBEDDING_CASES
from flm.engines.probing import RECOGNISED, dismissed, foreign, listed, shaped
from flm.engines.refusals import unreadable
from flm.engines.translation import LineStream, WholeAnswer, unfinished
from flm.errors import ErrorKind, engine_refusal
from flm.snapshot import Model
from flm.wire.chat import MALFORMED, ChatParameters, content_parts, modalities, parameters
from flm.wire.chunks import DONE, ChatMessage, ChunkWriter, completion, usage
from flm.wire.completions import CompletionParameters, CompletionWriter
from flm.wire.completions import completion as text_completion
from flm.wire.embeddings import EmbeddingParameters, answer, base64_vector, is_vector
from flm.wire.framing import readable

Raw = msgspec.Raw
encode = msgspec.json.Encoder().encode


SAME = (Rule(Act.REWORD, "happens anyway"),)
DEAF = (Rule(Act.REFUSE, "parrots hear words only", kind=ErrorKind.UNSUPPORTED_MODALITIES),)
CHAT = {
    **dict.fromkeys(("image parts", "audio parts", "video parts", "file parts"), DEAF),
    **dict.fromkeys(("stream_options", "tools: []", "response_format text"), SAME),
}
NOT_IDS = (Rule(Act.REFUSE, "parrots read no token ids"),)
TEXT = {"prompt": SAME, "prompt of several texts": SAME, "prompt of token ids": NOT_IDS, "stream_options": SAME}
VECTORS = {
    "input": SAME,
    "input of token ids": NOT_IDS,
    **dict.fromkeys(('encoding_format "base64"', "encoding_format"), SAME),
}


class About(msgspec.Struct):
    parrot: str


class Bird(msgspec.Struct):
    name: str
    memory: int | None = None


class Birds(msgspec.Struct):
    birds: list[Bird]


class Line(msgspec.Struct):
    word: str | None = None
    over: str | None = None
    squawk: str | None = None
    heard: int = 0
    spoke: int = 0


class Measures(msgspec.Struct):
    lengths: list[Raw]
    heard: int = 0


_line = msgspec.json.Decoder(Line)
_measures = msgspec.json.Decoder(Measures)
_about = msgspec.json.Decoder(About)
_birds = msgspec.json.Decoder(Birds)


def line_of(data: bytes) -> Line:
    try:
        line = _line.decode(readable(data))
    except MALFORMED:
        raise unreadable("a line of a parrot", data) from None
    if line.squawk is not None:
        raise engine_refusal(500, line.squawk)
    if line.over is not None and line.over not in ("stop", "length"):
        raise unreadable("a line of a parrot", data)
    return line


class Spoken(LineStream):
    """A streamed answer."""

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call) -> None:
        super().__init__(request, changes)
        self._call = call
        self._usage = call.peek.include_usage
        model = call.peek.model
        self._chat = ChunkWriter(call.response_id, call.created, model, include_usage=self._usage)
        self._text = CompletionWriter(call.response_id, call.created, model, include_usage=self._usage)
        self._begun = False

    def _line(self, data: bytes, out: bytearray) -> None:
        line = line_of(data)
        chat = self._call.endpoint is Endpoint.CHAT
        if not self._begun and chat:
            out += self._chat.role()
        self._begun = True
        if line.word is not None:
            text = encode(line.word)
            out += self._chat.content(text) if chat else self._text.text(text)
        if line.over is not None:
            writer = self._chat if chat else self._text
            out += writer.finish(line.over)
            if self._usage:
                out += writer.usage(usage(line.heard, line.spoke, None))
            out += DONE
            self._complete = True


class Said(WholeAnswer):
    """A whole answer: the same lines."""

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call) -> None:
        super().__init__(request, changes)
        self._call = call

    def _whole(self, body: bytes) -> bytes:
        lines = [line_of(line) for line in body.split(b"\n") if line.strip()]
        last = lines[-1] if lines else Line()
        if last.over is None:
            raise unfinished()
        call, text = self._call, "".join(line.word or "" for line in lines)
        counts = usage(last.heard, last.spoke, None)
        head = (call.response_id, call.created, call.peek.model)
        if call.endpoint is Endpoint.CHAT:
            return completion(*head, ChatMessage("assistant", Raw(encode(text))), last.over, counts, None)
        return text_completion(*head, encode(text), last.over, counts, None)


class Measured(WholeAnswer):
    """Vectors."""

    def __init__(self, request: UpstreamRequest, changes: tuple[Change, ...], call: Call, *, base64: bool) -> None:
        super().__init__(request, changes)
        self._model = call.peek.model
        self._base64 = base64

    def _whole(self, body: bytes) -> bytes:
        try:
            found = _measures.decode(readable(body))
            vectors = [base64_vector(vector) for vector in found.lengths] if self._base64 else found.lengths
        except MALFORMED:
            raise unreadable("the measures of a parrot", body) from None
        if not self._base64 and not all(map(is_vector, vectors)):
            raise unreadable("the measures of a parrot", body)
        return answer(vectors, self._model, found.heard)


class Parrot(DialectDefaults):
    kind = "parrot"
    label = "Parrot"
    chat_table = Table(CHAT_CASES, CHAT, otherwise=Act.DROP)
    completion_table = Table(COMPLETION_CASES, TEXT, otherwise=Act.DROP)
    embedding_table = Table(EMBEDDING_CASES, VECTORS, otherwise=Act.DROP)

    def addresses(self, environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
        perch = environment.get("PARROT_PERCH")
        return (perch,) if perch else ()

    def identify(self) -> Identifying:
        told = yield Probe("/parrot")
        about = shaped(told, _about)
        return dismissed(told) or (Identity(RECOGNISED, about.parrot) if about else foreign("it does not talk"))

    def models(self) -> Listing:
        found = listed((yield Probe("/parrot/birds")), _birds, "/parrot/birds")
        return tuple(Model(bird.name, context_length=bird.memory) for bird in found.birds)

    def begin(self, call: Call) -> Translation:
        fields = call.peek.fields
        if call.endpoint is Endpoint.EMBEDDINGS:
            wanted = parameters(fields, EmbeddingParameters)
            decided = self.embedding_table.decide(call)
            texts = [wanted.input] if isinstance(wanted.input, str) else list(wanted.input)
            request = UpstreamRequest("/parrot/measure", encode({"bird": call.model, "texts": texts}))
            return Measured(request, decided.told(), call, base64=wanted.encoding_format == "base64")
        if call.endpoint is Endpoint.CHAT:
            messages = parameters(fields, ChatParameters).messages
            decided = self.chat_table.decide(call, modalities(messages))
            parts = [part for message in messages for part in content_parts(message.content, "messages")]
            heard = [part.text or "" for part in parts]
        else:
            prompt = parameters(fields, CompletionParameters).prompt
            decided = self.completion_table.decide(call)
            heard = [prompt] if isinstance(prompt, str) else list(map(str, prompt))
        request = UpstreamRequest("/parrot/speak", encode({"bird": call.model, "heard": heard}))
        return (Spoken if call.peek.stream else Said)(request, decided.told(), call)


DIALECT = Parrot()
