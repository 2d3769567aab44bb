"""Adds to an SQLite database: database.py FILE WHO COUNT. Each transaction reads and writes."""
import sqlite3, sys

path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
database = sqlite3.connect(path, timeout=60, isolation_level=None)
# The disk's speed is not what is tested.
database.execute("pragma synchronous = off")
for number in range(count):
    database.execute("begin immediate")
    (total,) = database.execute("select total from counter").fetchone()
    database.execute("update counter set total = ?", (total + 1,))
    database.execute("insert into log values (?, ?, ?)", (who, number, "x" * (number * 37 % 3000)))
    database.execute("commit")
    if number % 10 == 5:
        database.execute("begin immediate")
        database.execute("update counter set total = -1000")
        database.execute("rollback")
