CREATE INDEX files_parent_id_step_new ON files (parent_id, (name || CASE WHEN is_folder THEN '/' ELSE '' END))
    WHERE deleted_at IS NULL;
DROP INDEX files_parent_id_step_idx;
ALTER INDEX files_parent_id_step_new RENAME TO files_parent_id_step_idx;
