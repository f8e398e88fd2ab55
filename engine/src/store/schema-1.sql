-- Times are milliseconds since 1970-01-01T00:00:00Z. Columns named `detail` and the like hold JSON.

CREATE TABLE generation (name TEXT PRIMARY KEY, count INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
INSERT INTO generation (name) VALUES ('images'), ('kernels'), ('vms'), ('operations'), ('progress');

CREATE TABLE images (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    -- Folder under images/ with the files; several names of one digest share one. NULL: unmanaged.
    content_id   TEXT,
    digest       TEXT,
    created_at   INTEGER NOT NULL,
    detail       TEXT NOT NULL
);
CREATE INDEX images_by_digest ON images (digest);
CREATE INDEX images_by_content ON images (content_id);

CREATE TABLE kernels (
    name         TEXT PRIMARY KEY,
    created_at   INTEGER NOT NULL,
    detail       TEXT NOT NULL
);

CREATE TABLE vms (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    state        TEXT NOT NULL,
    image_id     TEXT NOT NULL REFERENCES images (id),
    kernel_name  TEXT NOT NULL REFERENCES kernels (name),
    created_at   INTEGER NOT NULL,
    settings     TEXT NOT NULL,
    -- The process and what it was started with; NULL when none is known to run.
    run          TEXT,
    -- How the last run ended; NULL while one runs and before the first.
    ended        TEXT,
    -- How long the phases before the first boot took.
    creation     TEXT,
    labels       TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX vms_by_image ON vms (image_id);
CREATE INDEX vms_by_kernel ON vms (kernel_name);

CREATE TABLE boots (
    id           INTEGER PRIMARY KEY,
    vm_id        TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    started_at   INTEGER NOT NULL,
    detail       TEXT NOT NULL
);
CREATE INDEX boots_by_vm ON boots (vm_id, id);

CREATE TABLE leases (
    -- 'address' (a guest's IPv4 address), 'shared-address' (one in the network between machines) or
    -- 'port' (a port of the host, protocol/address/number).
    kind         TEXT NOT NULL,
    value        TEXT NOT NULL,
    vm_id        TEXT REFERENCES vms (id) ON DELETE CASCADE,
    detail       TEXT NOT NULL,
    PRIMARY KEY (kind, value)
) WITHOUT ROWID;
CREATE INDEX leases_by_vm ON leases (vm_id);

CREATE TABLE operations (
    id               TEXT PRIMARY KEY,
    parent_id        TEXT,
    kind             TEXT NOT NULL,
    target           TEXT NOT NULL,
    state            TEXT NOT NULL,
    owner            TEXT NOT NULL,
    started_at       INTEGER NOT NULL,
    ended_at         INTEGER,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    phases           TEXT NOT NULL,
    error            TEXT
);
CREATE INDEX operations_by_time ON operations (started_at);
CREATE INDEX operations_by_state ON operations (state);

CREATE TABLE operation_progress (
    operation_id TEXT PRIMARY KEY REFERENCES operations (id) ON DELETE CASCADE,
    detail       TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE operation_log (
    id           INTEGER PRIMARY KEY,
    operation_id TEXT NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    at           INTEGER NOT NULL,
    line         TEXT NOT NULL
);
CREATE INDEX operation_log_by_operation ON operation_log (operation_id, id);

CREATE TRIGGER images_insert AFTER INSERT ON images BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'images';
END;
CREATE TRIGGER images_update AFTER UPDATE ON images BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'images';
END;
CREATE TRIGGER images_delete AFTER DELETE ON images BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'images';
END;
CREATE TRIGGER kernels_insert AFTER INSERT ON kernels BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'kernels';
END;
CREATE TRIGGER kernels_update AFTER UPDATE ON kernels BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'kernels';
END;
CREATE TRIGGER kernels_delete AFTER DELETE ON kernels BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'kernels';
END;
CREATE TRIGGER vms_insert AFTER INSERT ON vms BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
CREATE TRIGGER vms_update AFTER UPDATE ON vms BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
CREATE TRIGGER vms_delete AFTER DELETE ON vms BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
CREATE TRIGGER boots_insert AFTER INSERT ON boots BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
CREATE TRIGGER boots_update AFTER UPDATE ON boots BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
CREATE TRIGGER boots_delete AFTER DELETE ON boots BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
CREATE TRIGGER leases_insert AFTER INSERT ON leases BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
CREATE TRIGGER leases_update AFTER UPDATE ON leases BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
CREATE TRIGGER leases_delete AFTER DELETE ON leases BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
CREATE TRIGGER operations_insert AFTER INSERT ON operations BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'operations';
END;
CREATE TRIGGER operations_update AFTER UPDATE ON operations BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'operations';
END;
CREATE TRIGGER operations_delete AFTER DELETE ON operations BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'operations';
END;
CREATE TRIGGER operation_progress_insert AFTER INSERT ON operation_progress BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'progress';
END;
CREATE TRIGGER operation_progress_update AFTER UPDATE ON operation_progress BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'progress';
END;
CREATE TRIGGER operation_progress_delete AFTER DELETE ON operation_progress BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'progress';
END;
