-- Frozen disks under layers/: what overlays of machines, snapshots and clones lie on.
CREATE TABLE layers (
    id           TEXT PRIMARY KEY,
    -- What it lies on itself; NULL: a file of the image.
    parent_id    TEXT REFERENCES layers (id),
    -- 'qcow2' or 'raw'
    format       TEXT NOT NULL,
    created_at   INTEGER NOT NULL
);
CREATE INDEX layers_by_parent ON layers (parent_id);

-- Layers that the disks of a machine lie on; a disk without a row lies on the image.
CREATE TABLE bases (
    vm_id        TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    -- 'root' or 'work'
    disk         TEXT NOT NULL,
    layer_id     TEXT REFERENCES layers (id),
    -- What it is about to lie on: the overlay is in the machine's folder, and not yet its disk.
    next_id      TEXT REFERENCES layers (id),
    PRIMARY KEY (vm_id, disk)
) WITHOUT ROWID;

CREATE TABLE snapshots (
    vm_id        TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    name         TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    root_id      TEXT NOT NULL REFERENCES layers (id),
    work_id      TEXT REFERENCES layers (id),
    detail       TEXT NOT NULL,
    PRIMARY KEY (vm_id, name)
) WITHOUT ROWID;

CREATE TRIGGER snapshots_insert AFTER INSERT ON snapshots BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
CREATE TRIGGER snapshots_delete AFTER DELETE ON snapshots BEGIN
    UPDATE generation SET count = count + 1 WHERE name = 'vms';
END;
