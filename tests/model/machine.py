"""One account, driven at random through the whole API, beside the reference; after each step both hold the same."""

import base64
import hashlib
import unicodedata
from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.model.caller import Answer, Client, text_of
from tests.model.reference import Account, Conditions, File, Folder, Link, Path, Refused
from tests.stack import Stack

QUOTA = 2500
Place = tuple[int, Path]  # which of what is there, or else the path; see `Machine.resolve`
# the last one is sent in NFD and comes back in NFC; three names on three levels meet often
NAMES = ("a", "b", unicodedata.normalize("NFD", "é"))

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
# mostly something that is there (which one of them), else any path: hypothesis by itself would seldom hit anything
places = st.tuples(st.integers(0, 40), paths)
files = st.tuples(st.integers(0, 40).map(lambda number: number + 100), paths)
contents = st.builds(lambda length, letter: letter * length, st.integers(0, 900), st.sampled_from((b"x", b"y", b"z")))
# the tag of a condition: the right one, one of another time, any (`*`); None: no condition
tags = st.sampled_from((None, None, None, None, None, "right", "right", "other", "*"))
numbers = st.integers(1, 6)
picks = st.integers(0, 5)  # which of several
# bodies of at most 64 KiB come with their request, larger ones by the spool: lives of both kinds
scales = st.sampled_from((1, 1, 100))


def stored(path: Path) -> Path:
    """The path as it comes back."""
    return tuple(unicodedata.normalize("NFC", name) for name in path)


class Machine(RuleBasedStateMachine):
    """Everything that an account can do with its files."""

    stack: ClassVar[Stack]
    client_kind: ClassVar[type[Client]] = Client

    @initialize(uploads=st.lists(st.tuples(paths, contents), min_size=3, max_size=6), scale=scales)
    def begin(self, uploads: list[tuple[Path, bytes]], scale: int) -> None:
        """An account with something in it."""
        self.scale = scale
        self.client = self.client_kind(self.stack, QUOTA * scale)
        self.account = Account(QUOTA * scale)
        for path, data in uploads:
            self.upload(path, data)

    def teardown(self) -> None:
        """Called at the end of each run, also if `begin` was never reached."""
        if hasattr(self, "client"):
            self.client.close()

    # --- what the rules have in common ---

    def resolve(self, place: Place) -> Path:
        """A path to try: of something that is there, of a file that is there (100 and above), or any."""
        number, path = place
        there = [found for found, node in self.account.walk() if number < 100 or isinstance(node, File)]
        if not there or number % 100 >= 32:
            return path
        found = there[number % len(there)]
        return tuple(unicodedata.normalize("NFD", name) for name in found)

    def perform(self, model: Callable[[], int], request: Callable[[], Answer]) -> Answer | None:
        """Do it here and there; both come to the same status.  The answer; None for a refusal."""
        try:
            expected: tuple[int, ...] = (model(),)
            is_done = True
        except Refused as refused:
            expected, is_done = refused.statuses, False
        answer = request()
        assert answer.status in expected, (answer, expected)
        if not is_done:
            assert answer.headers["content-type"].startswith("application/problem+json")
            return None
        return answer

    def conditions(self, path: Path, match: str | None, none_match: str | None) -> tuple[Conditions, dict[str, str]]:
        """For the model, and as headers."""
        try:
            found = self.account.find(path)
        except Refused:
            found = None
        right = found.head.etag if isinstance(found, File) else None
        others = sorted(self.account.tags - {right})
        meaning = {None: None, "right": right or '"0"', "other": others[0] if others else '"0"', "*": "*"}
        sent = Conditions(meaning[match], meaning[none_match])
        headers = {"If-Match": sent.if_match, "If-None-Match": sent.if_none_match}
        return sent, {name: value for name, value in headers.items() if value is not None}

    def item_id(self, pick: int) -> str:
        """The id of something in the trash, or of nothing."""
        items = self.account.trash
        found = items[pick % len(items)].node.id if items and pick else None
        return found or "01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60"

    def note_head(self, path: Path, answer: Any) -> None:
        """A file has a new version: what is said of it, and a tag that no version ever had."""
        file = self.account.get_file(path)
        assert answer["etag"] not in self.account.tags
        self.account.tags.add(answer["etag"])
        file.head.etag = answer["etag"]
        assert file.id in (None, answer["id"])
        file.id = answer["id"]

    def learn(self) -> None:
        """Ask for the ids and tags of what was made on the way; each has to be new."""
        known = {node.id for _, node in self.account.walk()}
        for path, node in self.account.walk():
            if node.id is None:
                answer = self.client.send("GET", "/file/info", query={"path": text_of(path)}).json
                assert answer["id"] not in known
                node.id = answer["id"]
                if isinstance(node, File):
                    self.note_head(path, answer)

    # --- bytes ---

    def upload(self, path: Path, data: bytes, match: str | None = None, none_match: str | None = None,
               digest: str | None = None) -> None:
        """Here and there."""
        data = data * self.scale
        conditions, headers = self.conditions(stored(path), match, none_match)
        if digest is not None:
            sha256 = hashlib.sha256(data if digest == "right" else data + b"!").digest()
            headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(sha256).decode()}:"

        def store() -> int:
            is_hopeless = self.account.is_hopeless(stored(path), len(data))
            try:
                if digest == "wrong":
                    raise Refused(400)
                return 201 if self.account.upload(stored(path), data, conditions) else 200
            except Refused as refused:
                raise Refused(*refused.statuses, *([507] if is_hopeless else [])) from None

        answer = self.perform(store, lambda: self.client.send("PUT", "/file", data, headers=headers,
                                                              query={"path": text_of(path)}))
        if answer is not None:
            assert answer.headers["etag"] == answer.json["etag"]
            self.note_head(stored(path), answer.json)

    @rule(path=paths, data=contents)
    def put(self, path: Path, data: bytes) -> None:
        """Upload to any path."""
        self.upload(path, data)

    @rule(place=files, data=contents, match=tags, none_match=tags,
          digest=st.sampled_from((None, None, None, "right", "wrong")))
    def put_if(self, place: Place, data: bytes, match: str | None, none_match: str | None,
               digest: str | None) -> None:
        """Replace a file, with conditions, and with a digest that is right or wrong."""
        self.upload(self.resolve(place), data, match, none_match, digest)

    @rule(place=files, by_id=st.booleans(), first=st.none() | st.integers(0, 900))
    def download(self, place: Place, by_id: bool, first: int | None) -> None:
        """The whole or the rest of it, by path or by id."""
        path = self.resolve(place)
        first = first and first * self.scale
        headers = {} if first is None else {"Range": f"bytes={first}-"}

        def read() -> int:
            data = self.account.get_file(stored(path)).head.data
            if first is None:
                return 200
            if first >= len(data):
                raise Refused(416)
            return 206

        where = text_of(path)
        try:
            where = (self.account.get(stored(path)).id or where) if by_id else where
        except Refused:
            pass
        answer = self.perform(read, lambda: self.client.send("GET", "/file/download", headers=headers,
                                                             query={"path": where}))
        if answer is not None:
            head = self.account.get_file(stored(path)).head
            assert answer.body == head.data[first or 0:]
            assert answer.headers["etag"] == head.etag

    @rule(place=files, match=tags, none_match=tags)
    def download_if(self, place: Place, match: str | None, none_match: str | None) -> None:
        """With conditions: 412 before 304."""
        path = self.resolve(place)
        conditions, headers = self.conditions(stored(path), match, none_match)

        def read() -> int:
            tag = self.account.get_file(stored(path)).head.etag
            Conditions(if_match=conditions.if_match).check(tag)
            return 304 if conditions.if_none_match in ("*", tag) else 200

        answer = self.perform(read, lambda: self.client.send("GET", "/file/download", headers=headers,
                                                             query={"path": text_of(path)}))
        if answer is not None:
            head = self.account.get_file(stored(path)).head
            assert answer.body == (b"" if answer.status == 304 else head.data)
            assert answer.headers["etag"] == head.etag

    @rule(place=files, number=numbers)
    def download_version(self, place: Place, number: int) -> None:
        """What a file was."""
        path = self.resolve(place)

        def read() -> int:
            if not any(version.number == number for version in self.account.get_file(stored(path)).versions):
                raise Refused(404)
            return 200

        answer = self.perform(read, lambda: self.client.send("GET", "/file/download", query={
            "path": text_of(path), "version": number}))
        if answer is not None:
            (version,) = (version for version in self.account.get_file(stored(path)).versions
                          if version.number == number)
            assert (answer.body, answer.headers["etag"]) == (version.data, version.etag)

    # --- the tree ---

    @rule(path=paths)
    def make_folder(self, path: Path) -> None:
        """With what is missing above it."""
        self.perform(lambda: 201 if self.account.make_folder(stored(path)) else 200,
                     lambda: self.client.send("POST", "/file/folder", {"path": text_of(path)}))

    @rule(place=places, match=tags, permanent=st.booleans())
    def delete(self, place: Place, match: str | None, permanent: bool) -> None:
        """A file or a folder, into the trash or for good."""
        path = self.resolve(place)
        conditions, headers = self.conditions(stored(path), match, None)

        def remove() -> int:
            self.account.delete(stored(path), conditions, permanent=permanent)
            return 204

        self.perform(remove, lambda: self.client.send("DELETE", "/file", headers=headers, query={
            "path": text_of(path), "permanent": str(permanent).lower()}))

    @rule(verb=st.sampled_from(("move", "copy")), place=places, goal=places, match=tags, overwrite=st.booleans())
    def transfer(self, verb: str, place: Place, goal: Place, match: str | None,
                 overwrite: bool) -> None:
        """A move or a copy of a file or folder."""
        source, to = self.resolve(place), self.resolve(goal)
        conditions, headers = self.conditions(stored(source), match, None)
        where: Path = ()

        def change() -> int:
            nonlocal where
            where = getattr(self.account, verb)(stored(source), stored(to), conditions, overwrite=overwrite)
            return 200 if verb == "move" else 201

        answer = self.perform(change, lambda: self.client.send("POST", f"/file/{verb}", {
            "from": text_of(source), "to": text_of(to), "overwrite": overwrite}, headers=headers))
        if answer is not None:
            assert answer.json["path"] == text_of(where)

    @rule(wanted=st.lists(st.tuples(st.sampled_from(("move", "copy", "delete")), places, places), min_size=1,
                          max_size=3))
    def batch(self, wanted: list[tuple[str, Place, Place]]) -> None:
        """Several changes, all or none."""
        steps = [(verb, self.resolve(one), self.resolve(other)) for verb, one, other in wanted]

        def change() -> int:
            for verb, one, other in steps:
                self.account.step(verb, stored(one), stored(other))
            return 200

        operations = [{"op": verb, "path": text_of(one)} if verb == "delete" else
                      {"op": verb, "from": text_of(one), "to": text_of(other)} for verb, one, other in steps]
        answer = self.perform(lambda: self.account.together(change),
                              lambda: self.client.send("POST", "/file/batch", {"operations": operations}))
        assert answer is None or len(answer.json["results"]) == len(steps)

    # --- trash ---

    @rule(pick=picks, to=st.none() | paths)
    def restore(self, pick: int, to: Path | None) -> None:
        """Bring something back: where it was, or to a place."""
        item_id = self.item_id(pick)
        where: Path = ()

        def change() -> int:
            nonlocal where
            where = self.account.restore(item_id, None if to is None else stored(to))
            return 200

        answer = self.perform(change, lambda: self.client.send("POST", "/file/trash/restore", {
            "id": item_id, **({} if to is None else {"to": text_of(to)})}))
        if answer is not None:
            assert (answer.json["path"], answer.json["id"]) == (text_of(where), item_id)

    @rule(pick=picks | st.none())
    def purge(self, pick: int | None) -> None:
        """Delete one item for good, or everything in the trash."""
        item_id = None if pick is None else self.item_id(pick)

        def change() -> int:
            self.account.purge(item_id)
            return 204

        self.perform(change, lambda: self.client.send("DELETE", "/file/trash", query={"id": item_id}))

    # --- versions ---

    @rule(place=files, number=numbers, match=tags)
    def restore_version(self, place: Place, number: int, match: str | None) -> None:
        """What a file was becomes its newest version."""
        self.restore_one(self.resolve(place), number, match)

    def restore_one(self, path: Path, number: int, match: str | None) -> None:
        """Here and there."""
        conditions, headers = self.conditions(stored(path), match, None)

        def change() -> int:
            self.account.restore_version(stored(path), number, conditions)
            return 200

        answer = self.perform(change, lambda: self.client.send(
            "POST", "/file/versions/restore", {"path": text_of(path), "version": number}, headers=headers))
        if answer is not None:
            self.note_head(stored(path), answer.json)

    @rule(place=files, number=numbers | st.none())
    def forget_versions(self, place: Place, number: int | None) -> None:
        """One former version, or all."""
        path = self.resolve(place)

        def change() -> int:
            self.account.forget_versions(stored(path), number)
            return 204

        self.perform(change, lambda: self.client.send("DELETE", "/file/versions", query={
            "path": text_of(path), "version": number}))

    @rule(place=files)
    def list_versions(self, place: Place) -> None:
        """The history of a file, newest first."""
        path = self.resolve(place)

        def read() -> int:
            self.account.get_file(stored(path))
            return 200

        answer = self.perform(read, lambda: self.client.send("GET", "/file/versions", query={"path": text_of(path)}))
        if answer is not None:
            file = self.account.get_file(stored(path))
            assert [(found["version"], found["sha256"], found["size"], found["etag"], found["is_current"])
                    for found in answer.json["versions"]] == [
                (version.number, version.sha256, len(version.data), version.etag, version is file.head)
                for version in reversed(file.versions)]

    # --- links ---

    @rule(place=files, limit=st.none() | st.integers(1, 2))
    def make_link(self, place: Place, limit: int | None) -> None:
        """For a file, with a limit or without."""
        path = self.resolve(place)

        def look() -> int:
            self.account.get(stored(path))
            return 201

        answer = self.perform(look, lambda: self.client.send("POST", "/file/link", {
            "path": text_of(path), "max_downloads": limit}))
        if answer is not None:
            self.account.links[answer.json["url"]] = Link(self.account.get(stored(path)), limit, answer.json["id"])

    @precondition(lambda self: self.account.links)
    @rule(pick=picks)
    def visit_link(self, pick: int) -> None:
        """Somebody without an account: gets the file, while there is one and the limit is not reached."""
        url = list(self.account.links)[pick % len(self.account.links)]
        node, data = self.account.links[url].node, b""

        def visit() -> int:
            nonlocal data
            data = self.account.visit(url)
            return 200

        answer = self.perform(visit, lambda: self.client.follow(url))
        if answer is not None:
            assert answer.body == data if isinstance(node, File) else (
                [child["name"] for child in answer.json["children"]] == self.account.names_in(node))

    @precondition(lambda self: self.account.links)
    @rule(pick=picks)
    def revoke_link(self, pick: int) -> None:
        """From then on it is not there."""
        url = list(self.account.links)[pick % len(self.account.links)]
        assert self.client.send("DELETE", f"/file/link/{self.account.links.pop(url).id}").status in (204, 404)
        assert self.client.follow(url).status == 404

    # --- changes that are sent again ---

    @precondition(lambda self: self.client.last)
    @rule()
    def repeat(self) -> None:
        """With its key a change has its answer again, whatever came after it, and is not made again."""
        last = self.client.last
        assert last is not None
        answer = self.client.send(last.method, last.address, last.data, headers=last.headers, query=last.query)
        assert (answer.status, answer.body) == (last.answer.status, last.answer.body)
        assert answer.headers.get("etag") == last.answer.headers.get("etag")

    @precondition(lambda self: self.client.last)
    @rule(path=paths, data=contents)
    def reuse(self, path: Path, data: bytes) -> None:
        """The key of another request is refused."""
        last = self.client.last
        assert last is not None
        key = {"Idempotency-Key": last.headers["Idempotency-Key"]}
        assert self.client.send("PUT", "/file", data + b"!", headers=key, query={"path": text_of(path)}).status == 422

    # --- after each step ---

    @invariant()
    def list_agrees(self) -> None:
        """Files and folders, with sizes, digests, tags, ids and numbers of versions; in one go and in pages."""
        self.learn()
        listed = self.client.send("GET", "/file/list", query={"folder": "/", "recursive": "true"}).json
        files = {text_of(path): node for path, node in self.account.walk() if isinstance(node, File)}
        assert {found["path"]: (found["size"], found["sha256"], found["etag"], found["id"], found["version"])
                for found in listed["files"]} == {
            path: (len(file.head.data), file.head.sha256, file.head.etag, file.id, file.head.number)
            for path, file in files.items()}
        assert len(listed["files"]) == len(files)
        assert {found["path"]: found["id"] for found in listed["folders"]} == {
            text_of(path): node.id for path, node in self.account.walk() if isinstance(node, Folder)}

    @rule(limit=st.integers(1, 3), sort=st.sampled_from(("name", "path", "size", "created_at", "updated_at")),
          order=st.sampled_from(("asc", "desc")))
    def pages_agree(self, limit: int, sort: str, order: str) -> None:
        """Pages put together are the list."""
        query: dict[str, object] = {"folder": "/", "recursive": "true", "sort": sort, "order": order}
        whole = self.client.send("GET", "/file/list", query=query).json
        pages = [self.client.send("GET", "/file/list", query={**query, "limit": limit}).json]
        while (cursor := pages[-1]["next_cursor"]) is not None:
            pages.append(self.client.send("GET", "/file/list", query={**query, "limit": limit, "cursor": cursor}).json)
        for kind in ("files", "folders"):
            assert [found for page in pages for found in page[kind]] == whole[kind]

    @invariant()
    def usage_agrees(self) -> None:
        """To the byte."""
        assert self.client.send("GET", "/file/usage_memory").json == self.account.usage()

    @invariant()
    def trash_agrees(self) -> None:
        """What it holds, and where that was."""
        items = self.client.send("GET", "/file/trash", query={"limit": 1000}).json["items"]
        self.account.learn_trash(items)
        assert sorted((found["id"], found["path"], found["type"], found["size"], found["files"])
                      for found in items) == sorted(self.account.trash_list())
