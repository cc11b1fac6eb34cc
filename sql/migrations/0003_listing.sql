-- Lists in pages: sizes beside the names, an index for each order, and search by a part of the name.
-- depends: 0002_files

-- The size of a blob is written down again in its versions and in the files whose current version it is, since an order
-- by size needs it in an index of files.  The foreign keys carry the size along, so none of the three can ever differ.
ALTER TABLE versions ADD COLUMN blob_bytes bigint;
UPDATE versions SET blob_bytes = blobs.size_bytes FROM blobs WHERE blobs.id = blob_id;
ALTER TABLE versions ALTER COLUMN blob_bytes SET NOT NULL;

ALTER TABLE files ADD COLUMN head_bytes bigint;
UPDATE files SET head_bytes = versions.blob_bytes FROM versions WHERE versions.id = head_id;
ALTER TABLE files ADD CONSTRAINT files_head_bytes_check CHECK (is_folder = (head_bytes IS NULL));

ALTER TABLE files DROP CONSTRAINT files_head_id_fkey;
ALTER TABLE versions DROP CONSTRAINT versions_blob_id_fkey;
ALTER TABLE versions DROP CONSTRAINT versions_file_id_id_key;
ALTER TABLE blobs DROP CONSTRAINT blobs_id_referable_key;
ALTER TABLE blobs ADD CONSTRAINT blobs_id_referable_size_bytes_key UNIQUE (id, referable, size_bytes);
ALTER TABLE versions ADD CONSTRAINT versions_file_id_id_blob_bytes_key UNIQUE (file_id, id, blob_bytes);
ALTER TABLE versions ADD CONSTRAINT versions_blob_id_fkey FOREIGN KEY (blob_id, blob_referable, blob_bytes)
    REFERENCES blobs (id, referable, size_bytes);
ALTER TABLE files ADD CONSTRAINT files_head_id_fkey FOREIGN KEY (id, head_id, head_bytes)
    REFERENCES versions (file_id, id, blob_bytes) DEFERRABLE INITIALLY DEFERRED;

-- One folder in each order, its folders and its files apart: a page is a walk along one of these.
CREATE INDEX files_parent_id_is_folder_name_idx ON files (parent_id, is_folder, name, id) WHERE deleted_at IS NULL;
CREATE INDEX files_parent_id_is_folder_head_bytes_idx ON files (parent_id, is_folder, head_bytes, id)
    WHERE deleted_at IS NULL;
CREATE INDEX files_parent_id_is_folder_created_at_idx ON files (parent_id, is_folder, created_at, id)
    WHERE deleted_at IS NULL;
CREATE INDEX files_parent_id_is_folder_updated_at_idx ON files (parent_id, is_folder, updated_at, id)
    WHERE deleted_at IS NULL;
DROP INDEX files_parent_id_folders_idx;  -- what it was for, the first of these does

-- A whole tree in the order of its paths: a folder counts as its name with the slash that follows it in every path below
-- it, so that going through the children in this order, and into each folder, meets the paths in order.
CREATE INDEX files_parent_id_step_idx ON files (parent_id, (name || CASE WHEN is_folder THEN '/' ELSE '' END))
    WHERE deleted_at IS NULL;

-- The form in which names are searched.  The collation of names knows ASCII only, and that of the database may; which
-- others there are depends on the server, so the best one is chosen here, once.
DO $$
DECLARE
    chosen text;
BEGIN
    SELECT format('%I.%I', nspname, collname) INTO chosen
    FROM pg_collation JOIN pg_namespace ON pg_namespace.oid = collnamespace
    WHERE nspname = 'pg_catalog' AND collname IN ('pg_c_utf8', 'und-x-icu')
      AND collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database()))
    ORDER BY collname LIMIT 1;
    EXECUTE format($create$
        CREATE FUNCTION fold_case(value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN lower(upper(value COLLATE %1$s) COLLATE %1$s)
        $create$, coalesce(chosen, 'pg_catalog."default"'));
END
$$;

-- The index of the search, if this server has pg_trgm and this role may install it; without it names are compared one
-- by one.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm') THEN
        CREATE EXTENSION IF NOT EXISTS pg_trgm;
    END IF;
EXCEPTION WHEN insufficient_privilege OR undefined_file THEN
    RAISE NOTICE 'pg_trgm cannot be installed: %', SQLERRM;
END
$$;
DO $$
DECLARE
    home text;
BEGIN
    SELECT nspname INTO home
    FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'pg_trgm';
    IF home IS NOT NULL THEN
        EXECUTE format('CREATE INDEX files_name_trigrams_idx ON files USING gin (fold_case(name) %I.gin_trgm_ops) '
                       'WHERE deleted_at IS NULL', home);
    END IF;
END
$$;
