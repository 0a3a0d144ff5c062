"""Resources kept in one SQLite file, so that they survive the server."""

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Store:
    """Records by kind and name. Every write is on disk before it returns; `lock` holds several of them together."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS resource (kind TEXT, name TEXT, record TEXT, PRIMARY KEY (kind, name))"
        )

    def get(self, kind: str, name: str) -> Record | None:
        with self.lock:
            query = "SELECT record FROM resource WHERE kind = ? AND name = ?"
            row = self._connection.execute(query, (kind, name)).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, kind: str, name: str, record: Record) -> None:
        with self.lock:
            self._connection.execute(
                "INSERT OR REPLACE INTO resource VALUES (?, ?, ?)", (kind, name, json.dumps(record))
            )

    def create(self, kind: str, name: str, record: Record) -> bool:
        """Stores a new record; False if one of that name exists."""
        with self.lock:
            cursor = self._connection.execute(
                "INSERT OR IGNORE INTO resource VALUES (?, ?, ?)", (kind, name, json.dumps(record))
            )
            return cursor.rowcount == 1

    def update(self, kind: str, name: str, **changes: Any) -> Record | None:
        """Sets fields of a record and returns it; None if it is gone."""
        with self.lock:
            record = self.get(kind, name)
            if record is not None:
                record.update(changes)
                self.put(kind, name, record)
            return record

    def delete(self, kind: str, name: str) -> bool:
        with self.lock:
            cursor = self._connection.execute("DELETE FROM resource WHERE kind = ? AND name = ?", (kind, name))
            return cursor.rowcount == 1

    def all(self, kind: str) -> list[Record]:
        with self.lock:
            rows = self._connection.execute("SELECT record FROM resource WHERE kind = ?", (kind,)).fetchall()
        return [json.loads(row[0]) for row in rows]
