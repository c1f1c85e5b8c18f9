"""The protocols in which numbered batches are sent, and their responses."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.support.loki import make_json
from tests.support.numbered_batches import make_body
from tests.support.service import TOKEN

_TIME = 1717169445123456789

#: The service's own code in an answer, before its message.
_CODE = re.compile(r"\b([a-z_]+): ")


class Protocol(NamedTuple):
    """The path and the form of a batch with a number and a size."""

    path: str
    make_body: Callable[[int, int], bytes]
    content_type: str = "application/json"
    accepted_status: int = 200

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request."""
        return {"Authorization": f"Bearer {TOKEN}", "Content-Type": self.content_type}

    def read_answer(self, text: str) -> dict[str, Any]:
        """Return the members of a response; in a rejection, the service's `code` and `message`.

        Other protocols have the two within a text.
        """
        if self is DRAIN:
            body: dict[str, Any] = json.loads(text)
            return body
        found = _CODE.search(text)
        return {"code": found[1] if found else text, "message": text}


def _make_events(batch: int, size: int) -> bytes:
    numbers = [{"batch": batch, "line": line} for line in range(size)]
    events = [{"index": "p", "event": {"msg": "paid"}, "fields": each} for each in numbers]
    return b"\n".join(json.dumps(event).encode() for event in events)


def _make_push(batch: int, size: int) -> bytes:
    numbers = [{"batch": str(batch), "line": str(line)} for line in range(size)]
    return make_json([({"app": "shop"}, [(_TIME, "paid", each) for each in numbers])])


def _make_bulk(batch: int, size: int) -> bytes:
    documents = [{"batch": batch, "line": line, "message": "paid"} for line in range(size)]
    return b"".join(b'{"create":{}}\n%s\n' % json.dumps(each).encode() for each in documents)


DRAIN = Protocol("/v1/drain", make_body)
HEC = Protocol("/services/collector/event", _make_events)
LOKI = Protocol("/loki/api/v1/push?project_id=p", _make_push, accepted_status=204)
BULK = Protocol("/elasticsearch/p/_bulk", _make_bulk, "application/x-ndjson")

#: Other products' protocols by their names.
FOREIGN = {"HEC": HEC, "Loki": LOKI, "bulk": BULK}
