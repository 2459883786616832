"""The knowledge room of a serving workload: its endpoints, and the models ``knowledge/<collection>``.

Every endpoint sees a user's own collections and no others. One that is there and not the user's is refused in the same words
as one that is not there at all. Specification: docs/spec/knowledge-service.md.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from cloister.errors import DocumentRefused, UsageError, WorkloadError
from cloister.inference.answers import DONE
from cloister.inference.api_errors import RequestRefused
from cloister.inference.exchange import BYTES, Asked, Caller, Reply
from cloister.inference.openai_requests import ChatRequest, convert
from cloister.inference.rooms import Desk, OpenRoom, Room
from cloister.knowledge.asking import Answering, End, Given, Piece
from cloister.knowledge.ingest import Ingest, Progress
from cloister.knowledge.prompt import Count
from cloister.knowledge.requests import (
    PREFIX,
    AddRequest,
    AnswerRequest,
    SearchRequest,
    check_digest,
    check_document,
    of_chat,
)
from cloister.knowledge.rules import Rules
from cloister.knowledge.shelf import Added, Library
from cloister.knowledge.telling import Completion, event, sources, whole_answer
from cloister.knowledge.threads import Threads
from cloister.knowledge.uploads import Uploads

LOG: Final = logging.getLogger("cloister.knowledge")
PATH: Final = "/v1/knowledge"
Json = dict[str, Any]


def knowledge_room(
    library: Library, rules: Rules, count: Count, *, clock: Callable[[], float] = time.monotonic
) -> OpenRoom:
    """What `cloister serve --knowledge` adds to its API. ``library`` stays the caller's to close."""
    return lambda desk: _Endpoints(library, rules, count, desk, clock).room()


@dataclass(frozen=True, slots=True)
class _User:
    """Who asks, and what is theirs."""

    name: str
    readable: frozenset[str]
    writable: frozenset[str]


class _Endpoints:
    def __init__(
        self, library: Library, rules: Rules, count: Count, desk: Desk, clock: Callable[[], float]
    ) -> None:
        self._library = library
        self._rules = rules
        self._desk = desk
        self._threads = Threads()
        self._answering = Answering(
            library, desk, count, rules.least_nearness / 100, rules.rerank, self._threads
        )
        self._uploads = Uploads(clock)
        self._ingest = Ingest(library)

    def room(self) -> Room:
        route = self._desk.route
        document = f"{PATH}/collections/{{collection}}/documents/{{name:path}}"
        return Room(
            prefix=PREFIX,
            models=self._models,
            chat=self._chat,
            routes=(
                route("GET", f"{PATH}/collections", self._collections, content=None),
                route("GET", f"{PATH}/collections/{{collection}}/documents", self._documents, content=None),
                route("PUT", document, self._add),
                route("DELETE", document, self._remove, content=None),
                route("GET", f"{PATH}/uploads/{{digest}}", self._uploaded, content=None),
                route("PUT", f"{PATH}/uploads/{{digest}}/{{part:int}}", self._upload, content=BYTES),
                route("POST", f"{PATH}/search", self._search),
                route("POST", f"{PATH}/answer", self._answer),
            ),
        )

    def _models(self, caller: Caller) -> Sequence[str]:
        name = self._rules.user_of(caller.identity)
        return [PREFIX + collection for collection in sorted(self._rules.readable(name))]

    async def _collections(self, asked: Asked, reply: Reply) -> None:
        user = self._user(asked.caller)
        documents = await self._threads.run(self._library.documents, user.readable)
        listed = [
            {
                "collection": collection,
                "documents": sum(one.collection == collection for one in documents),
                "passages": sum(one.passages for one in documents if one.collection == collection),
                "writable": collection in user.writable,
            }
            for collection in sorted(user.readable)
        ]
        await reply.json({"object": "list", "user": user.name, "data": listed})

    async def _documents(self, asked: Asked, reply: Reply) -> None:
        collection = _allowed(asked.path["collection"], self._user(asked.caller).readable)
        documents = await self._threads.run(self._library.documents, {collection})
        listed = [
            {
                "document": one.name, "title": one.title, "digest": one.digest.hex(), "passages": one.passages,
                "added": one.added,
            }
            for one in documents
        ]  # fmt: skip
        await reply.json({"object": "list", "collection": collection, "data": listed})

    async def _uploaded(self, asked: Asked, reply: Reply) -> None:
        digest, user = check_digest(asked.path["digest"]), self._writer(asked.caller)
        await reply.json({"parts": self._uploads.there(user.name, digest)})

    async def _upload(self, asked: Asked, reply: Reply) -> None:
        digest, user = check_digest(asked.path["digest"]), self._writer(asked.caller)
        self._uploads.put(user.name, digest, int(asked.path["part"]), asked.data)
        await reply.json({"kept": len(asked.data)})

    async def _add(self, asked: Asked, reply: Reply) -> None:
        """Progress and end as events; a refusal before the first of them has a status of its own."""
        user = self._writer(asked.caller)
        collection = _allowed(asked.path["collection"], user.writable)
        name = check_document(asked.path["name"])
        request = convert(await asked.json(), AddRequest)
        digest = check_digest(request.digest)
        try:
            known = await self._threads.run(self._library.holds, collection, name, digest)
            if known:
                await reply.json({"what": "unchanged", "passages": 0})
                return
            self._uploads.require(user.name, digest, request.parts)
            # Its parts are counted as the user's until it is this document's turn.
            take = partial(self._uploads.take, user.name, digest, request.parts)
            async for told in self._ingest.add(user.name, collection, name, take):
                await reply.event(_progress(told))
        except (DocumentRefused, UsageError) as error:
            todo = f"; {error.todo}" if error.todo else ""
            raise RequestRefused(
                f"The document is refused: {error.what}{todo}", status=422, code="document_refused"
            ) from None
        except WorkloadError as error:
            LOG.error("%s", error)
            raise RequestRefused(
                "The service cannot read documents: its reader does not start", status=500
            ) from None
        await reply.end()

    async def _remove(self, asked: Asked, reply: Reply) -> None:
        user = self._writer(asked.caller)
        collection = _allowed(asked.path["collection"], user.writable)
        name = check_document(asked.path["name"])
        removed = await self._threads.run(self._library.remove, collection, name, visible=user.readable)
        if not removed.there:
            raise RequestRefused("There is no such document", status=404, code="document_not_found")
        await reply.json({"removed": True, "copies": removed.copies})

    async def _search(self, asked: Asked, reply: Reply) -> None:
        request = convert(await asked.json(), SearchRequest)
        collections = self._asked(request.collections, asked.caller)
        hits = await self._answering.hits(
            [request.question], collections, asked.caller, most=request.passages
        )
        await reply.json({"object": "list", "data": sources(hits)})

    async def _answer(self, asked: Asked, reply: Reply) -> None:
        request = convert(await asked.json(), AnswerRequest)
        collections = self._asked(request.collections, asked.caller)
        given, pieces = Given((), request.question), list[str]()
        async for told in self._answering.answer(request, collections, asked.caller, moment=reply.moment):
            if isinstance(told, Piece):
                pieces.append(told.text)
            if isinstance(told, Given):
                given = told
                _commit(asked, given)
            if request.stream:
                await reply.event(event(told.text if isinstance(told, Piece) else told))
            elif isinstance(told, End):
                await reply.json(whole_answer(given, "".join(pieces), told))
        if request.stream:
            await reply.end()

    async def _chat(self, request: ChatRequest, reply: Reply, by: Asked) -> None:
        asked, system = of_chat(request)
        collections = self._asked(asked.collections, by.caller)
        options = request.stream_options
        counted = options is not None and bool(options.include_usage)
        completion = Completion(secrets.token_hex(16), request.model, int(self._desk.now()))
        given, pieces = Given((), asked.question), list[str]()
        async for told in self._answering.answer(
            asked, collections, by.caller, system=system, moment=reply.moment
        ):
            if isinstance(told, Given):
                given = told
                _commit(by, given)
                if asked.stream:
                    await reply.event(completion.begin(given))
            elif isinstance(told, Piece):
                pieces.append(told.text)
                if asked.stream:
                    await reply.event(completion.piece(told.text))
            elif asked.stream:
                for chunk in completion.end(given, told, usage=counted):
                    await reply.event(chunk)
                await reply.end(DONE)
            else:
                await reply.json(completion.whole(given, "".join(pieces), told))

    def _user(self, caller: Caller) -> _User:
        name = self._rules.user_of(caller.identity)
        if name is None:
            raise RequestRefused("This API key is no user's", status=403, code="no_user")
        return _User(name, self._rules.readable(name), self._rules.writable(name))

    def _writer(self, caller: Caller) -> _User:
        user = self._user(caller)
        if not user.writable:
            raise RequestRefused("You may add documents to no collection", status=403, code="no_writer")
        return user

    def _asked(self, names: Collection[str], caller: Caller) -> frozenset[str]:
        readable = self._user(caller).readable
        return frozenset(_allowed(name, readable) for name in names)


def _commit(asked: Asked, given: Given) -> None:
    """The receipt says which passages the answer was made from."""
    if asked.commit is not None:
        for hit in given.hits:
            one = hit.found
            asked.commit(
                one.collection.encode(),
                one.document.encode(),
                str(one.number).encode(),
                one.passage.text.encode(),
            )


def _allowed(collection: str, allowed: frozenset[str]) -> str:
    if collection not in allowed:
        raise RequestRefused(
            f"There is no collection {collection[:64]!r} that you may use so",
            status=404,
            code="collection_not_found",
        )
    return collection


def _progress(told: Progress | Added) -> Json:
    if isinstance(told, Added):
        return {"type": "end", "what": told.what, "passages": told.passages}
    return {"type": "progress", "done": told.done, "of": told.of}
