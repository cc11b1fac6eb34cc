-- A name in a folder is always found by its own index.
-- depends: 0003_listing

-- Of indexes that promise to cost the same PostgreSQL takes the newest.  While it knows nothing of the table, all that begin
-- with the folder do, and a plan that was made then is kept: each look for a name read all that is in the folder.  So the
-- index of the names is made once more, to be the newest.
CREATE UNIQUE INDEX files_parent_id_name_new ON files (parent_id, name) WHERE deleted_at IS NULL;
DROP INDEX files_parent_id_name_key;
ALTER INDEX files_parent_id_name_new RENAME TO files_parent_id_name_key;
