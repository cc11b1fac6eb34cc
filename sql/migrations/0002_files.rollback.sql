DROP TABLE instance;
ALTER TABLE files DROP CONSTRAINT files_head_id_fkey;
DROP TABLE versions;
DROP TABLE files;
DROP TABLE blobs;
