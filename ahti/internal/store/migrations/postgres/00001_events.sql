-- The schema of PostgreSQL. migrations/sqlite holds the same one in its dialect;
-- a migration is added to both.

-- +goose Up

-- The log: what was received, in the order of its commits. Everything else but
-- lessons follows from it.
CREATE TABLE events (
    sequence BIGINT PRIMARY KEY,  -- order of the commits
    id       TEXT    NOT NULL UNIQUE,
    at       BIGINT NOT NULL,     -- nanoseconds since the Unix epoch
    kind     TEXT    NOT NULL,
    source   TEXT    NOT NULL,
    cluster  TEXT    NOT NULL,
    severity BIGINT NOT NULL,
    relevant BIGINT NOT NULL,     -- to the engine: 0 not, 1 a symptom, 2 a change
    body     BYTEA  NOT NULL      -- ahti.v1.AhtiEvent
);
CREATE INDEX events_at ON events (at, sequence);
CREATE INDEX events_relevant ON events (relevant, at) WHERE relevant > 0;

-- Which events are about an entity: for each checkpoint one row an entity.
CREATE TABLE postings (
    entity     BIGINT NOT NULL,  -- hash of cluster, type and id
    checkpoint BIGINT NOT NULL,  -- last sequence that it covers
    first_at   BIGINT NOT NULL,
    last_at    BIGINT NOT NULL,
    body       BYTEA  NOT NULL,  -- times and sequences, see postings.go
    PRIMARY KEY (entity, checkpoint)
);

-- Versions of entities. A deleted one is a version too.
CREATE TABLE entities (
    entity   BIGINT NOT NULL,  -- as in postings
    sequence BIGINT NOT NULL,  -- event that it became known by
    type     BIGINT NOT NULL,  -- ahti.v1.EntityType
    at       BIGINT NOT NULL,
    gone     BIGINT NOT NULL,  -- 1: it was deleted
    body     BYTEA  NOT NULL,  -- ahti.v1.Entity
    PRIMARY KEY (entity, sequence)
);
CREATE INDEX entities_gone ON entities (at) WHERE gone = 1;

-- Versions of ties between entities.
CREATE TABLE relationships (
    relationship BIGINT NOT NULL,  -- hash of type, source and target
    sequence     BIGINT NOT NULL,
    at           BIGINT NOT NULL,
    gone         BIGINT NOT NULL,
    source       BIGINT NOT NULL,  -- as in entities
    target       BIGINT NOT NULL,
    body         BYTEA  NOT NULL,  -- ahti.v1.Relationship
    PRIMARY KEY (relationship, sequence)
);
CREATE INDEX relationships_source ON relationships (source);
CREATE INDEX relationships_target ON relationships (target);

-- The last state of every incident.
CREATE TABLE incidents (
    id           TEXT    NOT NULL PRIMARY KEY,
    cluster      TEXT    NOT NULL,
    state        BIGINT NOT NULL,
    started_at   BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    body         BYTEA  NOT NULL  -- ahti.v1.Incident
);
CREATE INDEX incidents_started ON incidents (started_at, id);
CREATE INDEX incidents_open ON incidents (started_at) WHERE state = 1;  -- those that go on

-- Single values: how far checkpoints have come, and lessons.
CREATE TABLE state (
    name  TEXT NOT NULL PRIMARY KEY,
    value BYTEA NOT NULL
);

-- Who writes: one row. Every ahti that opens the database counts it up, and every
-- transaction asks for its own number, so that an older one stops.
CREATE TABLE writer (
    epoch BIGINT NOT NULL
);
INSERT INTO writer (epoch) VALUES (0);
