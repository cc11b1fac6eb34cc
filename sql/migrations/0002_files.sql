-- The tree, its versions and the blobs that hold their bytes.
-- depends: 0001_users

-- One row for each file of bytes under the data root.  A row is fenced (referable = false) before its bytes are
-- removed: the foreign key of versions then makes "referenced" and "fenced" exclude each other.
CREATE TABLE blobs (
    id uuid CONSTRAINT blobs_pkey PRIMARY KEY,
    size_bytes bigint NOT NULL CONSTRAINT blobs_size_bytes_check CHECK (size_bytes >= 0),
    sha256 bytea CONSTRAINT blobs_sha256_check CHECK (octet_length(sha256) = 32),
    referable boolean NOT NULL DEFAULT true,
    unref_since timestamptz,
    fenced_at timestamptz,
    verified_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT blobs_id_referable_key UNIQUE (id, referable),
    CONSTRAINT blobs_referable_sha256_check CHECK (NOT referable OR sha256 IS NOT NULL),
    CONSTRAINT blobs_fenced_at_check CHECK (referable = (fenced_at IS NULL))
);
CREATE INDEX blobs_unref_since_idx ON blobs (unref_since) WHERE unref_since IS NOT NULL;

-- Files and folders; a folder is a file with is_folder.  The root folder of an account has the account's own id, no
-- parent and the empty name.  The path of a file is not stored: it follows from the parents, so a rename is one row.
CREATE TABLE files (
    id uuid CONSTRAINT files_pkey PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT files_user_id_fkey REFERENCES users ON DELETE CASCADE,
    parent_id uuid,
    parent_is_folder boolean NOT NULL GENERATED ALWAYS AS (true) STORED,
    name text COLLATE "C" NOT NULL,
    is_folder boolean NOT NULL,
    head_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT files_name_check CHECK (CASE WHEN parent_id IS NULL THEN name = '' AND is_folder AND id = user_id
        AND deleted_at IS NULL
        ELSE octet_length(name) BETWEEN 1 AND 255 AND name NOT IN ('.', '..') AND position('/' IN name) = 0
        AND name IS NFC NORMALIZED END),
    CONSTRAINT files_head_id_check CHECK (is_folder = (head_id IS NULL)),
    CONSTRAINT files_parent_id_check CHECK (parent_id <> id),
    CONSTRAINT files_user_id_id_is_folder_key UNIQUE (user_id, id, is_folder),
    -- the parent is a folder of the same account
    CONSTRAINT files_parent_id_fkey FOREIGN KEY (user_id, parent_id, parent_is_folder)
        REFERENCES files (user_id, id, is_folder)
);
CREATE UNIQUE INDEX files_parent_id_name_key ON files (parent_id, name) WHERE deleted_at IS NULL;
CREATE INDEX files_parent_id_idx ON files (parent_id);
-- the folders below a folder, without reading its files
CREATE INDEX files_parent_id_folders_idx ON files (parent_id) WHERE is_folder AND deleted_at IS NULL;

-- What a file held and holds.  Versions never change; an overwrite adds one and moves head_id.
CREATE TABLE versions (
    id uuid CONSTRAINT versions_pkey PRIMARY KEY,
    file_id uuid NOT NULL CONSTRAINT versions_file_id_fkey REFERENCES files ON DELETE CASCADE,
    number integer NOT NULL CONSTRAINT versions_number_check CHECK (number >= 1),
    blob_id uuid NOT NULL,
    blob_referable boolean NOT NULL GENERATED ALWAYS AS (true) STORED,
    content_type text NOT NULL CONSTRAINT versions_content_type_check CHECK (octet_length(content_type) BETWEEN 1 AND 255),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT versions_file_id_id_key UNIQUE (file_id, id),
    CONSTRAINT versions_file_id_number_key UNIQUE (file_id, number),
    CONSTRAINT versions_blob_id_fkey FOREIGN KEY (blob_id, blob_referable) REFERENCES blobs (id, referable)
);
CREATE INDEX versions_blob_id_idx ON versions (blob_id);

-- The current version is one of the file's own; checked at commit, since the two rows need each other.
ALTER TABLE files ADD CONSTRAINT files_head_id_fkey FOREIGN KEY (id, head_id) REFERENCES versions (file_id, id)
    DEFERRABLE INITIALLY DEFERRED;

-- Which database a data root belongs to: a restored dump beside newer bytes is noticed.
CREATE TABLE instance (
    only_row boolean CONSTRAINT instance_pkey PRIMARY KEY DEFAULT true CONSTRAINT instance_only_row_check CHECK (only_row),
    epoch uuid NOT NULL
);
INSERT INTO instance (epoch) VALUES (gen_random_uuid());
