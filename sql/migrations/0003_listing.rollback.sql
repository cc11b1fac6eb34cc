-- pg_trgm stays: somebody else may use it by now
DROP INDEX IF EXISTS files_name_trigrams_idx;
DROP FUNCTION fold_case(text);
DROP INDEX files_parent_id_step_idx;
CREATE INDEX files_parent_id_folders_idx ON files (parent_id) WHERE is_folder AND deleted_at IS NULL;
DROP INDEX files_parent_id_is_folder_updated_at_idx;
DROP INDEX files_parent_id_is_folder_created_at_idx;
DROP INDEX files_parent_id_is_folder_head_bytes_idx;
DROP INDEX files_parent_id_is_folder_name_idx;
ALTER TABLE files DROP CONSTRAINT files_head_id_fkey;
ALTER TABLE versions DROP CONSTRAINT versions_blob_id_fkey;
ALTER TABLE versions DROP CONSTRAINT versions_file_id_id_blob_bytes_key;
ALTER TABLE blobs DROP CONSTRAINT blobs_id_referable_size_bytes_key;
ALTER TABLE files DROP COLUMN head_bytes;
ALTER TABLE versions DROP COLUMN blob_bytes;
ALTER TABLE blobs ADD CONSTRAINT blobs_id_referable_key UNIQUE (id, referable);
ALTER TABLE versions ADD CONSTRAINT versions_file_id_id_key UNIQUE (file_id, id);
ALTER TABLE versions ADD CONSTRAINT versions_blob_id_fkey FOREIGN KEY (blob_id, blob_referable)
    REFERENCES blobs (id, referable);
ALTER TABLE files ADD CONSTRAINT files_head_id_fkey FOREIGN KEY (id, head_id) REFERENCES versions (file_id, id)
    DEFERRABLE INITIALLY DEFERRED;
