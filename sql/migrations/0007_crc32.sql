-- The checksum that an archive needs before the bytes; computed with the SHA-256, NULL for what was stored before.
-- depends: 0002_files

ALTER TABLE blobs ADD COLUMN crc32 bigint CONSTRAINT blobs_crc32_check CHECK (crc32 BETWEEN 0 AND 4294967295);
