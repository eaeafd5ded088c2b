-- The schema of SQLite. migrations/postgres holds the same one in its dialect;
-- a migration is added to both.

-- +goose Up

-- The log: what was received, in the order of its commits. Everything else but
-- lessons follows from it.
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,  -- order of the commits
    id       TEXT    NOT NULL UNIQUE,
    at       INTEGER NOT NULL,     -- nanoseconds since the Unix epoch
    kind     TEXT    NOT NULL,
    source   TEXT    NOT NULL,
    cluster  TEXT    NOT NULL,
    severity INTEGER NOT NULL,
    relevant INTEGER NOT NULL,     -- to the engine: 0 not, 1 a symptom, 2 a change
    body     BLOB    NOT NULL      -- ahti.v1.AhtiEvent
);
CREATE INDEX events_at ON events (at);
CREATE INDEX events_relevant ON events (relevant, at) WHERE relevant > 0;

-- Which events are about an entity: for each checkpoint one row an entity.
CREATE TABLE postings (
    entity     INTEGER NOT NULL,  -- hash of cluster, type and id
    checkpoint INTEGER NOT NULL,  -- last sequence that it covers
    first_at   INTEGER NOT NULL,
    last_at    INTEGER NOT NULL,
    body       BLOB    NOT NULL,  -- times and sequences, see postings.go
    PRIMARY KEY (entity, checkpoint)
) WITHOUT ROWID;

-- Versions of entities. A deleted one is a version too.
CREATE TABLE entities (
    entity   INTEGER NOT NULL,  -- as in postings
    sequence INTEGER NOT NULL,  -- event that it became known by
    type     INTEGER NOT NULL,  -- ahti.v1.EntityType
    at       INTEGER NOT NULL,
    gone     INTEGER NOT NULL,  -- 1: it was deleted
    body     BLOB    NOT NULL,  -- ahti.v1.Entity
    PRIMARY KEY (entity, sequence)
) WITHOUT ROWID;
CREATE INDEX entities_gone ON entities (at) WHERE gone = 1;

-- Versions of ties between entities.
CREATE TABLE relationships (
    relationship INTEGER NOT NULL,  -- hash of type, source and target
    sequence     INTEGER NOT NULL,
    at           INTEGER NOT NULL,
    gone         INTEGER NOT NULL,
    source       INTEGER NOT NULL,  -- as in entities
    target       INTEGER NOT NULL,
    body         BLOB    NOT NULL,  -- ahti.v1.Relationship
    PRIMARY KEY (relationship, sequence)
) WITHOUT ROWID;
CREATE INDEX relationships_source ON relationships (source);
CREATE INDEX relationships_target ON relationships (target);

-- The last state of every incident.
CREATE TABLE incidents (
    id           TEXT    NOT NULL PRIMARY KEY,
    cluster      TEXT    NOT NULL,
    state        INTEGER NOT NULL,
    started_at   INTEGER NOT NULL,
    last_seen_at INTEGER NOT NULL,
    body         BLOB    NOT NULL  -- ahti.v1.Incident
);
CREATE INDEX incidents_started ON incidents (started_at, id);
CREATE INDEX incidents_open ON incidents (started_at) WHERE state = 1;  -- those that go on

-- Single values: how far checkpoints have come, and lessons.
CREATE TABLE state (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
);

-- Who writes: one row. Every ahti that opens the database counts it up, and every
-- transaction asks for its own number, so that an older one stops.
CREATE TABLE writer (
    epoch INTEGER NOT NULL
);
INSERT INTO writer (epoch) VALUES (0);
