"""The index on the disk: SQLite, one writer, every commit synced. The only door to sqlite3.

WAL with `synchronous=FULL`: NORMAL may lose the last commits in a power cut, and a commit is what a reply stands on.
All methods block and are called in one thread. The schema's version is `user_version`.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cri_shim.errors import NoSpace, StoreDamaged
from cri_shim.store.catalog import Catalog, Layer, Opening
from cri_shim.store.durable import from_os_error
from cri_shim.store.image import Image, Usage, image_from, record_of
from cri_shim.store.provenance import Delivery, Proof, Provenance
from rootfs.digest import Digest
from rootfs.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

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
_FULL = ("database or disk is full",)


class Index:
    """The open index. Made by `Index.open`, in the thread that will use it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self._path = path

    @classmethod
    def open(cls, path: Path) -> Index:
        """Open the index at *path*, making an empty one when there is none.

        Raises:
            StoreDamaged: the file is no index, or was written by a newer cri-shim.
        """
        try:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise StoreDamaged(f"{path} cannot be opened: {error}") from error
        index = cls(connection, path)
        with index._translated():
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            index._migrate()
        return index

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self._db.close()

    def load(self) -> Catalog:
        """Read everything into memory.

        Raises:
            StoreDamaged: a row cannot be read.
        """
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
        key = str(image.id)
        with self._transaction("index.commit.put_image") as db:
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
            self._deliver(db, deliveries)

    def drop_image(self, image: Digest) -> None:
        """Forget *image* and every name of it."""
        with self._transaction("index.commit.drop_image") as db:
            for statement in (
                "DELETE FROM openings WHERE name IN (SELECT name FROM names WHERE image = ?)",
                "DELETE FROM names WHERE image = ?",
                "DELETE FROM image_layers WHERE image = ?",
                "DELETE FROM images WHERE id = ?",
            ):
                db.execute(statement, (str(image),))

    def put_layer(self, layer: Layer, proof: Proof | None = None, delivery: Delivery | None = None) -> None:
        """Record a layer that lies on the disk, with what its arrival has proved."""
        with self._transaction("index.commit.put_layer") as db:
            db.execute(
                "INSERT INTO layers VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
                (
                    layer.name,
                    str(layer.diff_id),
                    layer.form,
                    layer.usage.used_bytes,
                    layer.usage.inodes,
                    layer.ghosts,
                    layer.implied,
                ),
            )
            if proof is not None:
                db.execute("INSERT OR IGNORE INTO proofs VALUES (?, ?)", (str(proof.blob), str(proof.diff_id)))
            if delivery is not None:
                self._deliver(db, [delivery])

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
        with self._transaction("index.commit.drop_layers") as db:
            db.executemany("DELETE FROM layers WHERE name = ?", [(name,) for name in names])
            db.execute("DELETE FROM proofs WHERE diff_id NOT IN (SELECT diff_id FROM layers)")
            db.executemany(
                "DELETE FROM deliveries WHERE registry = ? AND repository = ? AND blob = ?",
                [(d.registry, d.repository, str(d.blob)) for d in deliveries],
            )

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

    def _migrate(self) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > _VERSION:
            raise StoreDamaged(f"{self._path} has schema {version}, written by a newer cri-shim; install that version")
        if version < _VERSION:
            with self._transaction("index.commit.migrate") as db:
                for statement in ";".join(_MIGRATIONS[version:]).split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_VERSION}")

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
        with self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                failpoint(point)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if str(error) in _FULL:
                raise NoSpace(f"{self._path}: {error}") from error
            raise StoreDamaged(f"{self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreDamaged(f"{self._path}: {error}") from error
        except OSError as error:
            raise from_os_error(error, self._path) from error
