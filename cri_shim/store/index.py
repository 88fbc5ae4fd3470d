"""The index on the disk: SQLite, one writer, every commit synced. The only door to sqlite3.

WAL with `synchronous=FULL`: NORMAL may lose the last commits in a power cut, and a commit is what a reply stands on.
All methods block and are called in one thread. The schema's version is `user_version`.

A commit that the disk refused is the last one: what of it lies in the log nobody knows, and what is written behind it
may vanish with it. From then on nothing is changed any more, until the index is opened anew. A full disk is no such
failure, and to remove something there is always room: a ballast is thrown off first.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.errors import NoSpace, StoreDamaged
from cri_shim.store.ballast import Ballast, lacks_room
from cri_shim.store.catalog import Catalog, Layer, Opening
from cri_shim.store.durable import from_os_error, sync_directory
from cri_shim.store.image import Image, Usage, image_from, record_of
from cri_shim.store.provenance import Delivery, Proof, Provenance
from rootfs.digest import Digest
from rootfs.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# What leads from one version to the next; the first makes an empty index.
_MIGRATIONS = (
    """
CREATE TABLE images (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE names (name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images (id)) WITHOUT ROWID;
CREATE INDEX names_of_image ON names (image);
CREATE TABLE layers (name TEXT PRIMARY KEY, diff_id TEXT NOT NULL, form TEXT NOT NULL, used_bytes INTEGER NOT NULL,
    inodes INTEGER NOT NULL, ghosts INTEGER NOT NULL, implied INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE image_layers (image TEXT NOT NULL REFERENCES images (id), position INTEGER NOT NULL,
    layer TEXT NOT NULL REFERENCES layers (name), PRIMARY KEY (image, position)) WITHOUT ROWID;
CREATE INDEX images_of_layer ON image_layers (layer);
CREATE TABLE proofs (blob TEXT NOT NULL, diff_id TEXT NOT NULL, PRIMARY KEY (blob, diff_id)) WITHOUT ROWID;
CREATE TABLE deliveries (registry TEXT NOT NULL, repository TEXT NOT NULL, blob TEXT NOT NULL,
    PRIMARY KEY (registry, repository, blob)) WITHOUT ROWID;
""",
    """
CREATE TABLE openings (name TEXT NOT NULL, credential TEXT NOT NULL, digest TEXT NOT NULL, at_s INTEGER NOT NULL,
    PRIMARY KEY (name, credential)) WITHOUT ROWID;
""",
)
_VERSION = len(_MIGRATIONS)
REPAIR = (
    "stop the daemon and run `cri-shim check --repair`, which makes the index anew from the seals of the layers and "
    "the records of the images"
)


class Index:
    """The open index. Made by `Index.open`, in the thread that will use it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self._path = path
        self._ballast = Ballast(path.with_name("ballast"))
        self._failed = ""

    @classmethod
    def open(cls, path: Path) -> Index:
        """Open the index at *path*, making an empty one when there is none.

        Raises:
            StoreDamaged: the file is no index, is damaged, or was written by a newer cri-shim; it says what to do.
            NoSpace: the disk has no room for it.
        """
        _keep_to_ourselves(path)
        try:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreDamaged(f"{path} cannot be opened: {error}") from error
        index = cls(connection, path)
        try:
            index._prepare()
        except BaseException:
            connection.close()
            raise
        return index

    def close(self) -> None:
        """Close the file; what was committed stays."""
        failpoint("index.close")
        self._db.close()

    def _prepare(self) -> None:
        try:
            with self._translated():
                # One process has the index open: it needs no file of shared memory, which would be mapped, and whose
                # pages the kernel cannot give back when the filesystem fails: it kills (SIGBUS) who touches them.
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("PRAGMA foreign_keys=ON")
                version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
                self._examine()
        except StoreDamaged as error:
            raise StoreDamaged(f"{error.sentence}; {REPAIR}") from error
        if version > _VERSION:
            raise StoreDamaged(f"{self._path} has schema {version}, written by a newer cri-shim; install that version")
        if version < _VERSION:
            self._migrate(version)
        self._ballast.load()

    def _examine(self) -> None:
        """Look for what makes an index unusable: pages that are wrong, rows that refer to nothing."""
        found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise StoreDamaged(f"{self._path} is damaged ({' '.join(str(found).split())[:200]})")
        if self._db.execute("PRAGMA foreign_key_check").fetchone() is not None:
            raise StoreDamaged(f"{self._path} is damaged (a row refers to one that is gone)")

    def load(self) -> Catalog:
        """Read everything into memory.

        Raises:
            StoreDamaged: a row cannot be read; it says what to do.
        """
        try:
            return self._loaded()
        except StoreDamaged as error:
            where = "" if str(self._path) in error.sentence else f"{self._path}: "
            raise StoreDamaged(f"{where}{error.sentence}; {REPAIR}") from error

    def _loaded(self) -> Catalog:
        with self._translated():
            return Catalog(
                images=(images := self._images()),
                names={name: image.id for image in images.values() for name in image.names},
                layers={layer.name: layer for layer in self._layers()},
                provenance=Provenance(
                    (Proof(Digest.parse(b), Digest.parse(d)) for b, d in self._rows("SELECT * FROM proofs")),
                    (Delivery(r, name, Digest.parse(blob)) for r, name, blob in self._rows("SELECT * FROM deliveries")),
                ),
                openings={
                    (name, credential): Opening(name, credential, Digest.parse(digest), at_s)
                    for name, credential, digest, at_s in self._rows("SELECT * FROM openings ORDER BY at_s")
                },
            )

    def put_image(self, image: Image, names: Iterable[str], deliveries: Iterable[Delivery] = ()) -> None:
        """Record *image* under *names* as well as those it has; a name that stood elsewhere moves.

        *deliveries* tell which registry delivered its documents.

        Raises:
            NoSpace, StoreDamaged: nothing was recorded.
        """
        with self._transaction("index.commit.put_image") as db:
            _put_image(db, image, names)
            self._deliver(db, deliveries)

    def drop_image(self, image: Digest) -> None:
        """Forget *image* and every name of it."""
        self._with_room(lambda: self._drop_image(image))

    def _drop_image(self, image: Digest) -> None:
        with self._transaction("index.commit.drop_image") as db:
            _drop_image(db, image)

    def put_layer(self, layer: Layer, proof: Proof | None = None, delivery: Delivery | None = None) -> None:
        """Record a layer that lies on the disk, with what its arrival has proved."""
        with self._transaction("index.commit.put_layer") as db:
            _put_layer(db, layer, proof)
            if delivery is not None:
                self._deliver(db, [delivery])

    def recover(
        self,
        lost_images: Iterable[Digest],
        adopt: Iterable[tuple[Layer, Proof | None]],
        lost_layers: Iterable[str],
        deliveries: Iterable[Delivery],
    ) -> None:
        """Forget images and layers that are not there any more, with *deliveries*, and record layers that are."""
        with self._transaction("index.commit.recover") as db:
            for image in lost_images:
                _drop_image(db, image)
            for layer, proof in adopt:
                _put_layer(db, layer, proof)
            _drop_layers(db, lost_layers, deliveries)

    def fill(
        self,
        layers: Iterable[tuple[Layer, Proof | None]],
        images: Iterable[Image],
        deliveries: Iterable[Delivery],
    ) -> None:
        """Record everything at once; of two images that claim a name the later one in *images* gets it."""
        with self._transaction("index.commit.fill") as db:
            for layer, proof in layers:
                _put_layer(db, layer, proof)
            for image in images:
                _put_image(db, image, image.names)
            self._deliver(db, deliveries)

    def put_deliveries(self, deliveries: Iterable[Delivery]) -> None:
        """Record which registry delivered which blobs."""
        with self._transaction("index.commit.put_deliveries") as db:
            self._deliver(db, deliveries)

    def put_opening(self, opening: Opening, outdated: Iterable[Opening] = ()) -> None:
        """Record that a credential opened a name, and forget those that are *outdated*."""
        with self._transaction("index.commit.put_opening") as db:
            self._forget(db, outdated)
            db.execute(
                "INSERT OR REPLACE INTO openings VALUES (?, ?, ?, ?)",
                (opening.name, opening.credential, str(opening.digest), opening.at_s),
            )

    def drop_openings(self, openings: Iterable[Opening]) -> None:
        """Forget that credentials opened names."""
        with self._transaction("index.commit.drop_openings") as db:
            self._forget(db, openings)

    def drop_layers(self, names: Iterable[str], deliveries: Iterable[Delivery]) -> None:
        """Forget layers, what was proved about a diff ID that is no longer here, and *deliveries*."""
        self._with_room(lambda: self._drop_layers(tuple(names), tuple(deliveries)))

    def _drop_layers(self, names: Iterable[str], deliveries: Iterable[Delivery]) -> None:
        with self._transaction("index.commit.drop_layers") as db:
            _drop_layers(db, names, deliveries)

    def _with_room(self, work: Callable[[], None]) -> None:
        """Do *work*, which frees room, also on a disk that has none."""
        try:
            work()
        except NoSpace:
            if not self._ballast.throw_off():
                raise
            work()
        self._ballast.load()

    @staticmethod
    def _deliver(db: sqlite3.Connection, deliveries: Iterable[Delivery]) -> None:
        db.executemany(
            "INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?)",
            [(d.registry, d.repository, str(d.blob)) for d in deliveries],
        )

    @staticmethod
    def _forget(db: sqlite3.Connection, openings: Iterable[Opening]) -> None:
        db.executemany(
            "DELETE FROM openings WHERE name = ? AND credential = ?", [(one.name, one.credential) for one in openings]
        )

    def _migrate(self, version: int) -> None:
        with self._transaction("index.commit.migrate") as db:
            for statement in ";".join(_MIGRATIONS[version:]).split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        sync_directory(self._path.parent)

    def _images(self) -> dict[Digest, Image]:
        names: dict[str, list[str]] = {}
        for name, image in self._rows("SELECT name, image FROM names"):
            names.setdefault(image, []).append(name)
        images = (image_from(record, names.get(key, ())) for key, record in self._rows("SELECT * FROM images"))
        return {image.id: image for image in images}

    def _layers(self) -> Iterator[Layer]:
        for name, diff_id, form, used, inodes, ghosts, implied in self._rows("SELECT * FROM layers"):
            yield Layer(name, Digest.parse(diff_id), form, Usage(used, inodes), bool(ghosts), implied)

    def _rows(self, statement: str) -> sqlite3.Cursor:
        return self._db.execute(statement)

    @contextmanager
    def _transaction(self, point: str) -> Iterator[sqlite3.Connection]:
        """Change the index as a whole or not at all; *point* is the failpoint before the commit."""
        if self._failed:
            raise StoreDamaged(
                f"{self._path} takes no changes since a write failed ({self._failed}); mend the disk and restart"
            )
        with self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                failpoint(point)
                self._db.execute("COMMIT")
            except BaseException as error:
                no_quota = self._hit_a_quota(error)
                if _is_of_disk(error) and not no_quota:
                    self._failed = str(error)
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if no_quota:
                    raise NoSpace(f"{self._path}: the quota is used up; free some room there") from error
                raise

    def _hit_a_quota(self, error: BaseException) -> bool:
        """SQLite takes a quota for a broken disk; what could not be written is none of the index, and may be again."""
        refused = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_WRITE
        return refused and lacks_room(self._path.parent)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if _code(error) == sqlite3.SQLITE_FULL:
                raise NoSpace(f"{self._path}: {error}") from error
            raise StoreDamaged(f"{self._path}: {error}") from error
        except OSError as error:
            raise from_os_error(error, self._path) from error


def _keep_to_ourselves(path: Path) -> None:
    """Make the file before SQLite does, which would let everybody read it; the files beside it take its mode."""
    with suppress(OSError):  # SQLite will say what is wrong
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)


def _put_image(db: sqlite3.Connection, image: Image, names: Iterable[str]) -> None:
    key = str(image.id)
    db.execute(
        "INSERT INTO images VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
        (key, record_of(image)),
    )
    db.execute("DELETE FROM image_layers WHERE image = ?", (key,))
    db.executemany(
        "INSERT INTO image_layers VALUES (?, ?, ?)",
        [(key, position, name) for position, name in enumerate(image.layer_names)],
    )
    db.executemany(
        "INSERT INTO names VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET image = excluded.image",
        [(name, key) for name in names],
    )


def _drop_image(db: sqlite3.Connection, image: Digest) -> None:
    for statement in (
        "DELETE FROM openings WHERE name IN (SELECT name FROM names WHERE image = ?)",
        "DELETE FROM names WHERE image = ?",
        "DELETE FROM image_layers WHERE image = ?",
        "DELETE FROM images WHERE id = ?",
    ):
        db.execute(statement, (str(image),))


def _put_layer(db: sqlite3.Connection, layer: Layer, proof: Proof | None) -> None:
    usage = layer.usage
    db.execute(
        "INSERT INTO layers VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
        (layer.name, str(layer.diff_id), layer.form, usage.used_bytes, usage.inodes, layer.ghosts, layer.implied),
    )
    if proof is not None:
        db.execute("INSERT OR IGNORE INTO proofs VALUES (?, ?)", (str(proof.blob), str(proof.diff_id)))


def _drop_layers(db: sqlite3.Connection, names: Iterable[str], deliveries: Iterable[Delivery]) -> None:
    db.executemany("DELETE FROM layers WHERE name = ?", [(name,) for name in names])
    db.execute("DELETE FROM proofs WHERE diff_id NOT IN (SELECT diff_id FROM layers)")
    db.executemany(
        "DELETE FROM deliveries WHERE registry = ? AND repository = ? AND blob = ?",
        [(d.registry, d.repository, str(d.blob)) for d in deliveries],
    )


def _code(error: BaseException) -> int:
    """Return the primary result code of SQLite, 0 where it is none of its errors."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _is_of_disk(error: BaseException) -> bool:
    """Tell whether the disk failed a write, other than by having no room."""
    full = isinstance(error, OSError) and isinstance(from_os_error(error, Path()), NoSpace)
    return (isinstance(error, OSError) and not full) or _code(error) == sqlite3.SQLITE_IOERR
