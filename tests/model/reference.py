"""What the service should do, in the simplest way there is: a tree in memory, copied before each change.

Nothing here knows of HTTP but its statuses, nor of any code of the service.  What only the service can choose (ids and
entity tags) is None until it has been seen.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

Path = tuple[str, ...]
P = ParamSpec("P")
T = TypeVar("T")
VERSIONS_KEEP = 10


class Refused(Exception):
    """The change is not made; the answer has one of these statuses: for several reasons any of them may be told."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(str(statuses))
        self.statuses = statuses


@dataclass(eq=False)
class Version:
    """What a file held."""

    number: int
    data: bytes
    etag: str | None = None

    @property
    def sha256(self) -> str:
        """In hex."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(eq=False)
class File:
    """A file; its current version is the last one."""

    versions: list[Version]
    id: str | None = None

    @property
    def head(self) -> Version:
        """What it holds."""
        return self.versions[-1]


@dataclass(eq=False)
class Folder:
    """A folder."""

    children: "dict[str, File | Folder]" = field(default_factory=dict)
    id: str | None = None


Node = File | Folder


@dataclass(eq=False)
class Trashed:
    """Something deleted, and where it was."""

    node: Node
    path: Path
    parent: Folder


@dataclass(eq=False)
class Link:
    """A public link; `left` None: without a limit."""

    node: Node
    left: int | None
    id: str
    kind: str = "download"
    has_password: bool = False
    uses: int = 0

    def use(self) -> None:
        """Once."""
        self.uses += 1
        if self.left is not None:
            self.left -= 1


@dataclass(frozen=True)
class Conditions:
    """If-Match and If-None-Match, each one tag or `*`."""

    if_match: str | None = None
    if_none_match: str | None = None

    def check(self, etag: str | None) -> None:
        """Refuse if they do not hold for the tag; None: there is no file."""
        if self.if_match is not None and (etag is None or self.if_match not in ("*", etag)):
            raise Refused(412)
        if self.if_none_match is not None and etag is not None and self.if_none_match in ("*", etag):
            raise Refused(412)


def all_or_nothing(method: Callable[Concatenate["Account", P], T]) -> Callable[Concatenate["Account", P], T]:
    """What is refused has changed nothing."""
    def change(self: "Account", /, *args: P.args, **kwargs: P.kwargs) -> T:
        before = copy.deepcopy(self.__dict__)
        try:
            return method(self, *args, **kwargs)
        except Refused:
            self.__dict__ = before
            raise

    return change


@dataclass(eq=False)
class Account:
    """All that an account has."""

    quota: int
    root: Folder = field(default_factory=Folder)
    trash: list[Trashed] = field(default_factory=list)  # newest last
    links: dict[str, Link] = field(default_factory=dict)  # by address
    tags: set[str] = field(default_factory=set)  # every entity tag ever seen
    signed: dict[str, bytes] = field(default_factory=dict)  # what each signed address stands for

    # --- look ---

    def walk(self, node: Node | None = None, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """Everything below a folder, or the root."""
        for name, child in (self.root if node is None else node).children.items():  # type: ignore[union-attr]
            yield (*path, name), child
            if isinstance(child, Folder):
                yield from self.walk(child, (*path, name))

    def is_live(self, node: Node) -> bool:
        """Whether a path leads there."""
        return node is self.root or any(found is node for _, found in self.walk())

    def path_of(self, node: Node) -> Path:
        """The path of what is live."""
        return next(path for path, found in self.walk() if found is node) if node is not self.root else ()

    def find(self, path: Path) -> Node | None:
        """What is at a path; 409 if it leads through a file."""
        node: Node = self.root
        for name in path:
            if isinstance(node, File):
                raise Refused(409)
            if name not in node.children:
                return None
            node = node.children[name]
        return node

    def get(self, path: Path) -> Node:
        """The same; 404 for all that is not there."""
        try:
            found = self.find(path)
        except Refused:
            found = None
        if found is None:
            raise Refused(404)
        return found

    def get_file(self, path: Path) -> File:
        """The file at a path; 409 for a folder."""
        found = self.get(path)
        if isinstance(found, Folder):
            raise Refused(409)
        return found

    @staticmethod
    def files_in(node: Node) -> list[File]:
        """The files of a tree."""
        if isinstance(node, File):
            return [node]
        return [file for child in node.children.values() for file in Account.files_in(child)]

    def usage(self) -> dict[str, int]:
        """What is held, in bytes, and the number of files."""
        files = self.files_in(self.root)
        heads = sum(len(file.head.data) for file in files)
        former = sum(len(version.data) for file in files for version in file.versions[:-1])
        trash = sum(len(version.data) for item in self.trash for file in self.files_in(item.node)
                    for version in file.versions)
        return {"files": heads, "versions": former, "trash": trash, "count": len(files), "quota": self.quota,
                "available": max(0, self.quota - heads - former - trash)}

    def check_quota(self) -> None:
        """Refuse if there is too much."""
        used = self.usage()
        if used["files"] + used["versions"] + used["trash"] > self.quota:
            raise Refused(507)

    # --- change ---

    def make_folders(self, path: Path) -> tuple[Folder, bool]:
        """The folder at a path, and whether it is new."""
        node, is_new = self.root, False
        for name in path:
            if name not in node.children:
                node.children[name] = Folder()
                is_new = True
            child = node.children[name]
            if isinstance(child, File):
                raise Refused(409)
            node = child
        return node, is_new

    @all_or_nothing
    def make_folder(self, path: Path) -> bool:
        """Whether it is new."""
        return self.make_folders(path)[1]

    def _set_head(self, file: File, data: bytes) -> None:
        """Give a file a new version; history gives way to the present."""
        before = self.usage()
        file.versions.append(Version(file.head.number + 1, data))
        del file.versions[:-1 - VERSIONS_KEEP]
        after = self.usage()
        grows = sum(after[part] - before[part] for part in ("files", "versions")) > 0
        if grows and self.quota < after["files"] + after["versions"] + after["trash"]:
            del file.versions[:-1]
            after = self.usage()
            if sum(after[part] - before[part] for part in ("files", "versions")) > 0:
                self.check_quota()

    @all_or_nothing
    def upload(self, path: Path, data: bytes, conditions: Conditions) -> bool:
        """Whether the file is new."""
        found = self.find(path)
        if isinstance(found, Folder):
            raise Refused(409)
        conditions.check(None if found is None else found.head.etag)
        if found is not None:
            self._set_head(found, data)
            return False
        self.make_folders(path[:-1])[0].children[path[-1]] = File([Version(1, data)])
        if data:
            self.check_quota()
        return True

    def is_hopeless(self, path: Path, size_bytes: int) -> bool:
        """What cannot have room whatever gives way; it may be refused for that before its first byte."""
        used = self.usage()
        try:
            found = self.get(path)
        except Refused:
            found = None
        freed = len(found.head.data) if isinstance(found, File) else 0
        return size_bytes > used["available"] + freed + used["versions"]

    def _take_out(self, node: Node) -> tuple[Path, Folder]:
        path = self.path_of(node)
        parent = self.get(path[:-1])
        assert isinstance(parent, Folder)
        del parent.children[path[-1]]
        return path, parent

    def _discard(self, node: Node) -> None:
        path, parent = self._take_out(node)
        self.trash.append(Trashed(node, path, parent))

    @all_or_nothing
    def delete(self, path: Path, conditions: Conditions, *, permanent: bool) -> None:
        """Into the trash, or for good."""
        found = self.get(path)
        if found is self.root:
            raise Refused(422)
        conditions.check(found.head.etag if isinstance(found, File) else None)
        if permanent:
            self._take_out(found)
        else:
            self._discard(found)

    def _prepare(self, source: Path, to: Path, conditions: Conditions) -> tuple[Node, Path, Node | None]:
        """What is moved or copied, its full new path, what is there."""
        found = self.get(source)
        if found is self.root:
            raise Refused(422)
        if isinstance(self.find(to), Folder):
            to = (*to, source[-1])
        existing = self.find(to)
        conditions.check(found.head.etag if isinstance(found, File) else None)
        if isinstance(found, Folder) and to[:len(source)] == source:
            raise Refused(409)
        return found, to, existing

    def _make_room(self, found: Node, to: Path, existing: Node | None, *, overwrite: bool) -> Folder:
        if existing is not None:
            if not (overwrite and isinstance(found, File) and isinstance(existing, File)):
                raise Refused(409)
            self._discard(existing)
        return self.make_folders(to[:-1])[0]

    @all_or_nothing
    def move(self, source: Path, to: Path, conditions: Conditions, *, overwrite: bool) -> Path:
        """The new path."""
        found, to, existing = self._prepare(source, to, conditions)
        if existing is not found:
            parent = self._make_room(found, to, existing, overwrite=overwrite)
            self._take_out(found)
            parent.children[to[-1]] = found
        return to

    @all_or_nothing
    def copy(self, source: Path, to: Path, conditions: Conditions, *, overwrite: bool) -> Path:
        """The path of the copy, which has no history."""
        found, to, existing = self._prepare(source, to, conditions)
        if existing is found:
            raise Refused(409)
        parent = self._make_room(found, to, existing, overwrite=overwrite)
        parent.children[to[-1]] = self._copy_of(found)
        if any(file.head.data for file in self.files_in(found)):
            self.check_quota()
        return to

    def _copy_of(self, node: Node) -> Node:
        if isinstance(node, File):
            return File([Version(1, node.head.data)])
        return Folder({name: self._copy_of(child) for name, child in node.children.items()})

    # --- trash ---

    def _trashed(self, item_id: str) -> Trashed:
        for item in self.trash:
            if item.node.id == item_id:
                return item
        raise Refused(404)

    @all_or_nothing
    def restore(self, item_id: str, to: Path | None) -> Path:
        """Bring something back; its path."""
        item = self._trashed(item_id)
        if to is None:
            parent = self._old_folder(item)
            name, number = item.path[-1], 2
            while name in parent.children:
                name, number = f"{item.path[-1]} ({number})", number + 1
        else:
            parent, name = self._new_place(item, to)
        self.trash.remove(item)
        parent.children[name] = item.node
        return self.path_of(item.node)

    def _old_folder(self, item: Trashed) -> Folder:
        if self.is_live(item.parent):
            return item.parent
        before = copy.copy(self.root.children)
        try:
            return self.make_folders(item.path[:-1])[0]
        except Refused:  # a file has the name of a folder that was there
            self.root.children = before
            return self.root

    def _new_place(self, item: Trashed, to: Path) -> tuple[Folder, str]:
        try:
            found = self.get(to)
        except Refused:
            return self.make_folders(to[:-1])[0], to[-1]
        if isinstance(found, File) or item.path[-1] in found.children:
            raise Refused(409)
        return found, item.path[-1]

    @all_or_nothing
    def purge(self, item_id: str | None) -> None:
        """One item, or everything."""
        if item_id is None:
            self.trash.clear()
        else:
            self.trash.remove(self._trashed(item_id))

    # --- versions ---

    @all_or_nothing
    def restore_version(self, path: Path, number: int, conditions: Conditions) -> None:
        """What the file was becomes its newest version."""
        file = self.get_file(path)
        wanted = [version for version in file.versions if version.number == number]
        if not wanted:
            raise Refused(404)
        conditions.check(file.head.etag)
        self._set_head(file, wanted[0].data)

    @all_or_nothing
    def forget_versions(self, path: Path, number: int | None) -> None:
        """One former version, or all."""
        file = self.get_file(path)
        if number is None:
            del file.versions[:-1]
            return
        wanted = [version for version in file.versions if version.number == number]
        if not wanted:
            raise Refused(404)
        if wanted[0] is file.head:
            raise Refused(409)
        file.versions.remove(wanted[0])

    # --- links ---

    def visit(self, url: str) -> bytes:
        """What a link gives without a password, nothing for a folder; counts it if there are bytes to be had."""
        link = self.links[url]
        if not self.is_live(link.node) or link.left == 0:
            raise Refused(404)
        if link.has_password:
            raise Refused(401)
        if link.kind == "upload":
            raise Refused(405)
        if isinstance(link.node, Folder):
            return b""
        link.use()
        return link.node.head.data

    def is_trashed(self, node: Node) -> bool:
        """Whether it could be restored."""
        return any(node is item.node or isinstance(item.node, Folder) and any(
            found is node for _, found in self.walk(item.node)) for item in self.trash)

    @staticmethod
    def below(link: Link, within: Path) -> Node:
        """What a path leads to from the linked folder; 404 if nowhere, or if guests may see nothing of it."""
        node = link.node
        for name in within:
            if isinstance(node, File) or link.kind == "upload" or name not in node.children:
                raise Refused(404)
            node = node.children[name]
        return node

    @all_or_nothing
    def drop(self, link: Link, name: str, data: bytes) -> None:
        """A guest's upload: what is there stays."""
        folder, free, number = link.node, name, 2
        assert isinstance(folder, Folder)
        while free in folder.children:
            free, number = f"{name} ({number})", number + 1
        folder.children[free] = File([Version(1, data)])
        if data:
            self.check_quota()

    @staticmethod
    def names_in(folder: Folder) -> list[str]:
        """Its folders, then its files."""
        return [name for kind in (Folder, File)
                for name in sorted(name for name, child in folder.children.items() if isinstance(child, kind))]

    # --- several at once ---

    def step(self, verb: str, one: Path, other: Path) -> None:
        """A part of a batch."""
        if verb == "delete":
            self.delete(one, Conditions(), permanent=False)
        elif verb == "move":
            self.move(one, other, Conditions(), overwrite=False)
        else:
            self.copy(one, other, Conditions(), overwrite=False)

    @all_or_nothing
    def together(self, steps: Callable[[], int]) -> int:
        """All of them or none."""
        return steps()

    # --- what only the service knows ---

    def trash_list(self) -> list[tuple[str | None, str, str, int, int]]:
        """Id, path, kind, bytes with all former versions, files of each item."""
        return [(item.node.id, "/" + "/".join(item.path), "file" if isinstance(item.node, File) else "folder",
                 sum(len(version.data) for file in self.files_in(item.node) for version in file.versions),
                 len(self.files_in(item.node)))
                for item in self.trash]

    def learn_trash(self, items: list[dict[str, Any]]) -> None:
        """What was made and deleted in one step: its id is that of an item nobody knows yet that looks the same."""
        known = {item.node.id for item in self.trash}
        for item, row in zip(self.trash, self.trash_list(), strict=True):
            if item.node.id is None:
                item.node.id = next(found["id"] for found in items if found["id"] not in known and row[1:] == (
                    found["path"], found["type"], found["size"], found["files"]))
                known.add(item.node.id)
