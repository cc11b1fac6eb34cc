"""The same account by all its other doors: forms, ids, searches, archives, links, signed addresses, sessions."""

import io
import unicodedata
import zipfile
from typing import Any
from urllib.parse import urlencode

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.client import PASSWORD
from tests.model.caller import NO_KEY, Answer, text_of
from tests.model.machine import NAMES, Machine, Place, contents, files, numbers, picks, places, stored, tags
from tests.model.reference import Conditions, File, Folder, Link, Node, Path, Refused

BOUNDARY = "a-boundary"
WRONG_PASSWORD = "not the password"


def form_of(filename: str, data: bytes, **fields: str) -> tuple[bytes, dict[str, str]]:
    """A form with text fields and one file, and the header that goes with it."""
    lines = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
             for name, value in fields.items()]
    lines.append(f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n')
    return ("".join(lines).encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode(),
            {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})


def read_archive(answer: Answer) -> dict[str, bytes]:
    """Names and bytes; folders end in a slash.  Its CRCs are compared on the way."""
    assert int(answer.headers["content-length"]) == len(answer.body)
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class Doors(Machine):
    """Everything that an account and its guests can do with its files."""

    # --- bytes ---

    @rule(place=places, name=st.sampled_from(NAMES), data=contents, is_slashed=st.booleans(), match=tags,
          none_match=tags)
    def post(self, place: Place, name: str, data: bytes, is_slashed: bool, match: str | None,
             none_match: str | None) -> None:
        """A form: to a path, or into the folder that is there or that a slash asks for."""
        path, data = self.resolve(place), data * self.scale
        try:
            found = self.account.find(stored(path))
        except Refused:
            found = None
        full = stored((*path, name)) if is_slashed or isinstance(found, Folder) else stored(path)
        conditions, headers = self.conditions(full, match, none_match)
        body, kind = form_of(name, data, path=text_of(path) + "/" * is_slashed)

        def store() -> int:
            used = self.account.usage()
            is_hopeless = len(data) > used["available"] + used["files"] + used["versions"]
            try:
                if is_slashed and isinstance(found, File):
                    raise Refused(409)
                return 201 if self.account.upload(full, data, conditions) else 200
            except Refused as refused:
                raise Refused(*refused.statuses, *([507] if is_hopeless else [])) from None

        answer = self.perform(store, lambda: self.client.send("POST", "/file", body, headers={**headers, **kind}))
        if answer is not None:
            assert answer.json["path"] == text_of(full)
            self.note_head(full, answer.json)

    @rule(place=files)
    def head(self, place: Place) -> None:
        """What a download would say."""
        path = self.resolve(place)

        def read() -> int:
            self.account.get_file(stored(path))
            return 200

        answer = self.perform(read, lambda: self.client.send("HEAD", "/file/download", query={"path": text_of(path)}))
        if answer is not None:
            file = self.account.get_file(stored(path))
            assert (answer.body, answer.headers["etag"], int(answer.headers["content-length"])) == (
                b"", file.head.etag, len(file.head.data))

    # --- looks ---

    @rule(place=places, by_id=st.booleans())
    def info(self, place: Place, by_id: bool) -> None:
        """Of a file or a folder, by path or by id."""
        path = self.resolve(place)

        def read() -> int:
            self.account.get(stored(path))
            return 200

        where: str | None = None
        try:
            where = self.account.get(stored(path)).id
        except Refused:
            pass
        answer = self.perform(read, lambda: self.client.send("GET", "/file/info", query={
            "path": where if by_id and where else text_of(path)}))
        if answer is not None:
            node, said = self.account.get(stored(path)), answer.json
            assert (said["id"], said["path"], said["name"]) == (node.id, text_of(stored(path)), stored(path)[-1])
            if isinstance(node, File):
                assert (said["version"], said["sha256"], said["size"], said["etag"]) == (
                    node.head.number, node.head.sha256, len(node.head.data), node.head.etag)
            else:
                inside = self.account.files_in(node)
                assert (said["files"], said["size"]) == (len(inside), sum(len(file.head.data) for file in inside))

    @rule(place=places)
    def list_folder(self, place: Place) -> None:
        """What is directly in it."""
        path = self.resolve(place)

        def read() -> int:
            if isinstance(self.account.get(stored(path)), File):
                raise Refused(409)
            return 200

        answer = self.perform(read, lambda: self.client.send("GET", "/file/list", query={"folder": text_of(path)}))
        if answer is not None:
            node = self.account.get(stored(path))
            assert isinstance(node, Folder)
            for kind, key in ((File, "files"), (Folder, "folders")):
                assert {found["name"]: found["id"] for found in answer.json[key]} == {
                    name: child.id for name, child in node.children.items() if isinstance(child, kind)}

    @rule(part=st.sampled_from(("A", "b", "E", unicodedata.normalize("NFD", "É"), "(2)", "_", "%")))
    def search(self, part: str) -> None:
        """Upper and lower case are the same, and nothing stands for anything else."""
        answer = self.client.send("GET", "/file/list", query={"q": part, "recursive": "true"})
        wanted = unicodedata.normalize("NFC", part).casefold()
        for kind, key in ((File, "files"), (Folder, "folders")):
            assert {found["path"] for found in answer.json[key]} == {
                text_of(path) for path, node in self.account.walk()
                if isinstance(node, kind) and wanted in path[-1].casefold()}

    def entries(self, folder: Folder, name: str) -> dict[str, bytes]:
        """What an archive of it holds."""
        found = {f"{name}/": b""}
        for path, node in self.account.walk(folder):
            key = "/".join((name, *path))
            found |= {key: node.head.data} if isinstance(node, File) else {f"{key}/": b""}
        return found

    @rule(place=places, is_root=st.booleans())
    def archive(self, place: Place, is_root: bool) -> None:
        """A folder as a zip."""
        path = () if is_root else self.resolve(place)

        def read() -> int:
            if isinstance(self.account.get(stored(path)), File):
                raise Refused(409)
            return 200

        answer = self.perform(read, lambda: self.client.send("GET", "/file/archive", query={"path": text_of(path)}))
        if answer is not None:
            node = self.account.get(stored(path))
            assert isinstance(node, Folder)
            assert read_archive(answer) == self.entries(node, stored(path)[-1] if path else "files")

    # --- guests ---

    @rule(place=places, limit=st.none() | st.integers(1, 2), has_password=st.booleans(),
          kind=st.sampled_from(("download", "upload", "upload")))
    def make_special_link(self, place: Place, limit: int | None, has_password: bool, kind: str) -> None:
        """With a password, or to put things into a folder."""
        path = self.resolve(place)

        def look() -> int:
            if isinstance(self.account.get(stored(path)), File) and kind == "upload":
                raise Refused(409)
            return 201

        answer = self.perform(look, lambda: self.client.send("POST", "/file/link", {
            "path": text_of(path), "max_downloads": limit, "kind": kind,
            "password": PASSWORD if has_password else None}))
        if answer is not None:
            self.account.links[answer.json["url"]] = Link(
                self.account.get(stored(path)), limit, answer.json["id"], kind=kind, has_password=has_password)

    def pick_link(self, pick: int) -> tuple[str, Link]:
        """One of them, and its address."""
        url = list(self.account.links)[pick % len(self.account.links)]
        return url, self.account.links[url]

    @staticmethod
    def password(link: Link, is_right: bool) -> dict[str, str]:
        """What a guest shows."""
        return {"X-Link-Password": PASSWORD if is_right else WRONG_PASSWORD} if link.has_password else {}

    @precondition(lambda self: self.account.links)
    @rule(pick=picks, within=st.lists(st.sampled_from(NAMES), max_size=2).map(tuple), is_right=st.sampled_from(
        (True, True, True, False)), is_zipped=st.booleans())
    def explore_link(self, pick: int, within: Path, is_right: bool, is_zipped: bool) -> None:
        """A file or folder in a linked folder, as it is or as a zip."""
        url, link = self.pick_link(pick)
        query: dict[str, str] = {"path": "/".join(within)} if within else {}
        if is_zipped:
            query["download"] = "1"
        found: Node | None = None

        def visit() -> int:
            nonlocal found
            if not self.account.is_live(link.node) or link.left == 0:
                raise Refused(404)
            if link.has_password and not is_right:
                raise Refused(401)
            found = self.account.below(link, stored(within))
            if link.kind == "upload":
                raise Refused(405)
            if isinstance(found, File) or is_zipped:
                link.use()
            return 200

        answer = self.perform(visit, lambda: self.client.follow(
            f"{url}?{urlencode(query)}", headers=self.password(link, is_right)))
        if answer is None:
            return
        if isinstance(found, File):
            assert answer.body == found.head.data
            return
        assert isinstance(found, Folder)
        if is_zipped:
            name = self.account.path_of(found)[-1:]
            assert read_archive(answer) == self.entries(found, name[0] if name else "files")
        else:
            assert [child["name"] for child in answer.json["children"]] == self.account.names_in(found)

    @precondition(lambda self: any(link.kind == "upload" for link in self.account.links.values()))
    @rule(pick=picks, name=st.sampled_from(NAMES), data=contents, is_right=st.sampled_from((True, True, True, False)))
    def drop(self, pick: int, name: str, data: bytes, is_right: bool) -> None:
        """Somebody without an account puts something into a folder: nothing is replaced."""
        urls = [url for url, link in self.account.links.items() if link.kind == "upload"]
        url, data = urls[pick % len(urls)], data * self.scale
        link = self.account.links[url]

        def store() -> int:
            used = self.account.usage()
            is_hopeless = len(data) > used["available"] + used["versions"]
            if not self.account.is_live(link.node) or link.left == 0:
                raise Refused(404)
            if link.has_password and not is_right:
                raise Refused(401)
            try:
                self.account.drop(link, stored((name,))[0], data)
            except Refused as refused:
                raise Refused(*refused.statuses, *([507] if is_hopeless else [])) from None
            link.use()
            return 201

        body, kind = form_of(name, data)
        answer = self.perform(store, lambda: self.client.follow(
            url, method="POST", data=body, headers={**kind, **self.password(link, is_right)}))
        if answer is not None:
            assert (answer.json["name"], answer.json["size"]) == (stored((name,))[0], len(data))

    @rule()
    def links_agree(self) -> None:
        """What the maker sees of the links: those of what is not gone for good."""
        listed = self.client.send("GET", "/file/link").json["links"]
        expected: list[tuple[Any, ...]] = []
        for link in self.account.links.values():
            is_live = self.account.is_live(link.node)
            if is_live or self.account.is_trashed(link.node):
                path = text_of(self.account.path_of(link.node)) if is_live else None
                limit = None if link.left is None else link.left + link.uses
                expected.append((link.id, path, link.kind, link.has_password, limit, link.uses))
        assert sorted((found["id"], found["path"], found["kind"], found["has_password"], found["max_downloads"],
                       found["downloads"]) for found in listed) == sorted(expected)

    @rule(place=files)
    def sign(self, place: Place) -> None:
        """An address of the version that the file has now."""
        path = self.resolve(place)

        def look() -> int:
            self.account.get_file(stored(path))
            return 201

        answer = self.perform(look, lambda: self.client.send("POST", "/file/sign", {
            "path": text_of(path), "expires_in": 600}, headers=NO_KEY))
        if answer is not None:
            self.account.signed[answer.json["url"]] = self.account.get_file(stored(path)).head.data

    @precondition(lambda self: self.account.signed)
    @rule(pick=picks)
    def use_signed(self, pick: int) -> None:
        """It gives these bytes whatever became of the file: they stay for a while."""
        url = list(self.account.signed)[pick % len(self.account.signed)]
        answer = self.client.follow(url)
        assert (answer.status, answer.body) == (200, self.account.signed[url])

    # --- by id, by version ---

    @rule(place=places, match=tags, permanent=st.booleans())
    def delete_by_id(self, place: Place, match: str | None, permanent: bool) -> None:
        """What has an id is deleted wherever it is."""
        path = self.resolve(place)
        try:
            found = self.account.get(stored(path))
        except Refused:
            return
        sent, headers = self.conditions(stored(path), match, None)

        def remove() -> int:
            self.account.delete(stored(path), sent, permanent=permanent)
            return 204

        self.perform(remove, lambda: self.client.send("DELETE", "/file", headers=headers, query={
            "path": found.id, "permanent": str(permanent).lower()}))

    @rule(place=files, data=contents, number=numbers)
    def overwrite_by_id(self, place: Place, data: bytes, number: int) -> None:
        """A new version of what has this id, then one of the former ones again."""
        path = self.resolve(place)
        data = data * self.scale
        try:
            found = self.account.get_file(stored(path))
        except Refused:
            return

        def store() -> int:
            is_hopeless = self.account.is_hopeless(stored(path), len(data))
            try:
                self.account.upload(stored(path), data, Conditions())
            except Refused as refused:
                raise Refused(*refused.statuses, *([507] if is_hopeless else [])) from None
            return 200

        answer = self.perform(store, lambda: self.client.send("PUT", "/file", data, query={"path": found.id}))
        if answer is not None:
            self.note_head(stored(path), answer.json)
            self.restore_one(stored(path), number, None)

    # --- sessions ---

    @rule()
    def renew(self) -> None:
        """A new token; the account is the same."""
        self.client.renew()
        assert self.client.send("GET", "/auth/me").json["username"] == self.client.username

    @rule()
    def log_in_again(self) -> None:
        """After the end of a session its token is no good, the next one's is."""
        self.client.log_out()
        assert self.client.send("GET", "/file/list").status == 401
        self.client.log_in()
