-- What was deleted and can come back, and former versions.
-- depends: 0003_listing

-- A file or folder in the trash lies below the account's root folder, where no path leads, and remembers where it was.
-- Trash therefore never nests: to put something there, or to bring it back, changes one row.
ALTER TABLE files
    ADD COLUMN trashed_from text COLLATE "C",
    ADD COLUMN trashed_parent_id uuid,
    ADD CONSTRAINT files_trashed_from_check CHECK ((deleted_at IS NULL) = (trashed_from IS NULL)),
    ADD CONSTRAINT files_trashed_parent_id_check CHECK (deleted_at IS NOT NULL OR trashed_parent_id IS NULL),
    ADD CONSTRAINT files_deleted_at_check CHECK (deleted_at IS NULL OR parent_id = user_id);
CREATE INDEX files_user_id_deleted_at_idx ON files (user_id, deleted_at DESC, id DESC) WHERE deleted_at IS NOT NULL;
CREATE INDEX files_deleted_at_idx ON files (deleted_at) WHERE deleted_at IS NOT NULL;

-- since when a version is a former one; NULL for the current one
ALTER TABLE versions ADD COLUMN replaced_at timestamptz;
CREATE INDEX versions_replaced_at_idx ON versions (replaced_at) WHERE replaced_at IS NOT NULL;
