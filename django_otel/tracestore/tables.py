"""Tables of the store."""

from __future__ import annotations

#: Grows with every change of the tables; each version has a file of its own, so that two may run side by side.
SCHEMA_VERSION = 5

_TRACES = """
CREATE TABLE trace (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  trace_id TEXT NOT NULL UNIQUE,
  start_ns INTEGER NOT NULL,
  end_ns INTEGER NOT NULL,
  duration_ns INTEGER NOT NULL,
  root_rank INTEGER NOT NULL,
  root_start_ns INTEGER NOT NULL,
  name TEXT NOT NULL,
  method TEXT NOT NULL,
  route TEXT NOT NULL,
  status INTEGER NOT NULL,
  service TEXT NOT NULL,
  services TEXT NOT NULL,
  spans INTEGER NOT NULL,
  queries INTEGER NOT NULL,
  errors INTEGER NOT NULL,
  logs INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  dropped INTEGER NOT NULL,
  spans_dropped INTEGER NOT NULL,
  release TEXT NOT NULL,
  user TEXT NOT NULL,
  is_pinned INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX trace_start ON trace (start_ns) WHERE spans > 0;
CREATE INDEX trace_duration ON trace (duration_ns);
CREATE INDEX trace_route ON trace (route);
CREATE INDEX trace_status ON trace (status);
CREATE INDEX trace_service ON trace (service);
CREATE INDEX trace_release ON trace (release);
CREATE TABLE chunk (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, kind TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX chunk_seq ON chunk (seq);
CREATE TABLE event (seq INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (seq, name)) WITHOUT ROWID;
CREATE INDEX event_name ON event (name);
CREATE TABLE store (begun_s REAL NOT NULL);
CREATE TABLE sample (
  step_s INTEGER NOT NULL, at_s INTEGER NOT NULL, source TEXT NOT NULL, service TEXT NOT NULL, data BLOB NOT NULL,
  routes BLOB NOT NULL, opening BLOB NOT NULL,
  PRIMARY KEY (step_s, at_s, source)
);
CREATE TABLE baseline (source TEXT PRIMARY KEY, at_s REAL NOT NULL, data BLOB NOT NULL, running BLOB NOT NULL);
CREATE TABLE process (
  instance TEXT PRIMARY KEY, service TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
  started_s REAL NOT NULL, seen_s REAL NOT NULL, data BLOB NOT NULL
);
"""

_ISSUES = """
CREATE TABLE issue (
  id INTEGER PRIMARY KEY AUTOINCREMENT, fingerprint TEXT NOT NULL UNIQUE, service TEXT NOT NULL, type TEXT NOT NULL,
  module TEXT NOT NULL, function TEXT NOT NULL, file TEXT NOT NULL, line INTEGER NOT NULL, message TEXT NOT NULL,
  first_s REAL NOT NULL, last_s REAL NOT NULL, count INTEGER NOT NULL, first_release TEXT NOT NULL,
  last_release TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'open', changed_s REAL NOT NULL DEFAULT 0,
  changed_by TEXT NOT NULL DEFAULT '', resolved_release TEXT NOT NULL DEFAULT '', is_back INTEGER NOT NULL DEFAULT 0,
  notified_s REAL NOT NULL DEFAULT 0, stack BLOB NOT NULL
);
CREATE INDEX issue_last ON issue (last_s);
CREATE TABLE issue_route (
  issue INTEGER NOT NULL, route TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (issue, route)
) WITHOUT ROWID;
CREATE TABLE issue_release (
  issue INTEGER NOT NULL, name TEXT NOT NULL, count INTEGER NOT NULL, first_s REAL NOT NULL, last_s REAL NOT NULL,
  PRIMARY KEY (issue, name)
) WITHOUT ROWID;
CREATE TABLE issue_step (
  issue INTEGER NOT NULL, at_s INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (issue, at_s)
) WITHOUT ROWID;
CREATE TABLE issue_trace (
  id INTEGER PRIMARY KEY, issue INTEGER NOT NULL, trace_id TEXT NOT NULL, span_id TEXT NOT NULL, at_s REAL NOT NULL,
  route TEXT NOT NULL
);
CREATE INDEX issue_trace_issue ON issue_trace (issue);
CREATE TABLE notice (
  id INTEGER PRIMARY KEY, issue INTEGER NOT NULL, target TEXT NOT NULL, reason TEXT NOT NULL, service TEXT NOT NULL,
  due_s REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, claimed_s REAL NOT NULL DEFAULT 0, UNIQUE (issue, target)
);
CREATE TABLE release (
  service TEXT NOT NULL, name TEXT NOT NULL, first_s REAL NOT NULL, PRIMARY KEY (service, name)
) WITHOUT ROWID;
"""

SCHEMA = _TRACES + _ISSUES
