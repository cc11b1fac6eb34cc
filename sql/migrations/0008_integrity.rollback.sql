ALTER TABLE instance DROP COLUMN high_water;
DROP TABLE checks;
DROP INDEX blobs_verified_at_idx;
DROP TABLE damaged_blobs;
DROP TABLE strays;
