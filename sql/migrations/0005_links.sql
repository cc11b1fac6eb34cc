-- Public links: who knows the token needs no account.
-- depends: 0002_files

-- Only the SHA-256 of a token is kept.  A link names its file by id, so it follows a move; the row goes with the file.
CREATE TABLE links (
    id uuid CONSTRAINT links_pkey PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT links_user_id_fkey REFERENCES users ON DELETE CASCADE,
    file_id uuid NOT NULL,
    is_folder boolean NOT NULL,
    kind text NOT NULL CONSTRAINT links_kind_check CHECK (kind IN ('download', 'upload')),
    token_sha256 bytea NOT NULL
        CONSTRAINT links_token_sha256_key UNIQUE
        CONSTRAINT links_token_sha256_check CHECK (octet_length(token_sha256) = 32),
    password_hash text,
    max_downloads bigint CONSTRAINT links_max_downloads_check CHECK (max_downloads >= 1),
    downloads bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    CONSTRAINT links_downloads_check CHECK (downloads >= 0 AND (max_downloads IS NULL OR downloads <= max_downloads)),
    -- only a folder can be uploaded into
    CONSTRAINT links_is_folder_check CHECK (kind = 'download' OR is_folder),
    -- the file is one of the same account
    CONSTRAINT links_file_id_fkey FOREIGN KEY (user_id, file_id, is_folder)
        REFERENCES files (user_id, id, is_folder) ON DELETE CASCADE
) WITH (fillfactor = 70); -- every download updates a counter: leave room for HOT updates
CREATE INDEX links_file_id_idx ON links (file_id);
CREATE INDEX links_user_id_idx ON links (user_id, created_at);
CREATE INDEX links_expires_at_idx ON links (expires_at) WHERE expires_at IS NOT NULL;
