-- What is in the trash, and former versions, were never visible to the code before: they go.
WITH RECURSIVE doomed AS (
    SELECT id FROM files WHERE deleted_at IS NOT NULL
    UNION ALL
    SELECT files.id FROM doomed JOIN files ON files.parent_id = doomed.id
)
DELETE FROM files USING doomed WHERE files.id = doomed.id;
DELETE FROM versions WHERE replaced_at IS NOT NULL;
UPDATE blobs SET unref_since = now()
WHERE unref_since IS NULL AND NOT EXISTS (SELECT FROM versions WHERE versions.blob_id = blobs.id);
UPDATE users SET trash_bytes = 0, versions_bytes = 0;
DROP INDEX versions_replaced_at_idx;
ALTER TABLE versions DROP COLUMN replaced_at;
DROP INDEX files_deleted_at_idx;
DROP INDEX files_user_id_deleted_at_idx;
ALTER TABLE files
    DROP CONSTRAINT files_deleted_at_check,
    DROP CONSTRAINT files_trashed_parent_id_check,
    DROP CONSTRAINT files_trashed_from_check,
    DROP COLUMN trashed_parent_id,
    DROP COLUMN trashed_from;
