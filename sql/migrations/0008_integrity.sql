-- Looking after the bytes: files without a row, blobs that are damaged, what was checked when, and how old this
-- database is beside its data root.
-- depends: 0002_files

-- A file among the blobs without a row.  It is written down when it is seen; when it is set aside (quarantined_at), a
-- row that is fenced from the beginning takes its key in the table blobs, so that no late upload can name it.
CREATE TABLE strays (
    blob_id uuid CONSTRAINT strays_pkey PRIMARY KEY,
    size_bytes bigint NOT NULL CONSTRAINT strays_size_bytes_check CHECK (size_bytes >= 0),
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    quarantined_at timestamptz,
    CONSTRAINT strays_last_seen_at_check CHECK (last_seen_at >= first_seen_at)
);

-- A blob whose bytes are not what its row says.
CREATE TABLE damaged_blobs (
    blob_id uuid CONSTRAINT damaged_blobs_pkey PRIMARY KEY
        CONSTRAINT damaged_blobs_blob_id_fkey REFERENCES blobs ON DELETE CASCADE,
    kind text NOT NULL CONSTRAINT damaged_blobs_kind_check CHECK (kind IN ('missing', 'size', 'digest', 'unreadable')),
    found_at timestamptz NOT NULL DEFAULT now()
);

-- the order in which bytes are read back: what never was comes first
CREATE INDEX blobs_verified_at_idx ON blobs (verified_at NULLS FIRST) WHERE referable;

-- When each of the checks was last done to its end.
CREATE TABLE checks (
    name text CONSTRAINT checks_pkey PRIMARY KEY
        CONSTRAINT checks_name_check CHECK (octet_length(name) BETWEEN 1 AND 64),
    finished_at timestamptz NOT NULL,
    findings bigint NOT NULL CONSTRAINT checks_findings_check CHECK (findings >= 0)
);

-- Counted up before anything is removed, here and then in the data root: a database that has counted less far than its
-- data root is an older one.
ALTER TABLE instance ADD COLUMN high_water bigint NOT NULL DEFAULT 0
    CONSTRAINT instance_high_water_check CHECK (high_water >= 0);
